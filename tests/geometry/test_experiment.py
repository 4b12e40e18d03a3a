"""The geometry experiment on toy models: complete, repeatable, and able to come out either way."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from crosscoders.activation_fns import TopK
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.experiments.geometry.experiment import GeometryOptions, geometry_experiment
from crosscoders.experiments.study import Finding, Material, Study
from crosscoders.harvest import load_sources
from crosscoders.latents import LatentTable
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.corpus import Corpus
from tests.data.toy_models import random_tokens, toy_model, toy_tokenizer

OPTIONS = GeometryOptions(
    n_components=4, n_quadruples=200, n_permutations=19, n_resamples=50, structure_tokens=60, n_axes=3
)
TASKS = {
    "next": tuple((f"w{i}", f"w{i + 1}") for i in range(4, 12)),
    "twice": tuple((f"w{i}", f"w{2 * i}") for i in range(5, 15)),
    "unknown": (("a", "b"), ("c", "d")),
}


def toy_study(distilled: Any, **material: Any) -> Study:
    sources = load_sources({"base": toy_model(), "distilled": distilled}, tokenizer=toy_tokenizer())
    config = CrosscoderConfig(sources=sources.sources, n_latents=12, activation_fn=TopK(k=2))
    held_out = random_tokens(20, 8)
    columns = {"latent": torch.arange(12), "frequency": torch.arange(12) / 20}
    return Study(
        config=RunConfig(
            base="module:base",
            distilled="module:distilled",
            text="",
            out="",
            n_latents=12,
            activation_fn=TopK(k=2),
        ),
        crosscoder=Crosscoder(config, generator=torch.Generator().manual_seed(0)).eval(),
        sources=sources,
        corpus=Corpus(train=held_out[:0], held_out=held_out, origin=torch.zeros_like(held_out)),
        latents=LatentTable(columns=columns, n_tokens=160),
        material=Material(
            markers={},
            prompts=(),
            count_categories=lambda ids: {},
            stop_ids=(),
            **{"word_tasks": TASKS, **material},
        ),
    )


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@pytest.fixture(scope="module")
def finding_and_folder(tmp_path_factory) -> tuple[Finding, Path]:
    folder = tmp_path_factory.mktemp("geometry")
    return geometry_experiment(toy_study(toy_model(seed=1)), OPTIONS, folder=folder), folder


def test_everything_that_the_finding_names_is_written(finding_and_folder) -> None:
    finding, folder = finding_and_folder
    written = {path.name for path in folder.iterdir()}
    figures = {f"{name}.{suffix}" for name in finding.figures for suffix in ("png", "svg")}
    assert written == figures | set(finding.tables)
    assert any("task 'unknown' has 0 of 2 pairs" in line for line in finding.lines)


def test_tables_hold_every_task_model_and_scale(finding_and_folder) -> None:
    _, folder = finding_and_folder
    scores = rows(folder / "parallelogram.csv")
    assert len(scores) == 2 * 2 * 4
    assert {row["scale"] for row in scores} == {"all", "task", "dp", "dp_0m"}
    differences = rows(folder / "parallelogram_difference.csv")
    assert len(differences) == 2 * 4 * 2
    row = next(r for r in differences if (r["scale"], r["task"], r["relative"]) == ("dp", "next", "False"))
    loss = {s["source"]: float(s["loss"]) for s in scores if (s["scale"], s["task"]) == ("dp", "next")}
    assert float(row["estimate"]) == pytest.approx(loss["distilled"] - loss["base"], rel=1e-6)


def test_structure_covers_models_and_decoders(finding_and_folder) -> None:
    _, folder = finding_and_folder
    values = {(row["measure"], row["of"]): float(row["value"]) for row in rows(folder / "structure.csv")}
    assert set(values) == {
        *(
            (name, s)
            for name in ("effective_dimension", "nearest_cosine_median")
            for s in ("base", "distilled")
        ),
        *((name, "base, distilled") for name in ("linear_cka", "overlap_top3", "cosine_structure")),
    }
    assert 1 <= values["effective_dimension", "base"] <= 16


def test_verdict_of_a_model_beside_itself_is_no_difference(tmp_path: Path) -> None:
    study = toy_study(toy_model())
    verdict = geometry_experiment(study, OPTIONS, folder=tmp_path).verdict
    assert verdict.startswith("Neither of the paper's findings shows")
    assert "better structured in 0 of 2 tasks and the base in 0" in verdict
    assert "control" not in verdict


def straightened() -> Any:
    """The toy model with its words on a line, so that all steps from w(i) to w(i + 1) are nearly the same."""
    model = toy_model()
    with torch.no_grad():
        line = torch.arange(40.0)[:, None] * torch.ones(16) / 40
        model.model.embed_tokens.weight.mul_(0.001).add_(line)
    return model


@pytest.mark.parametrize("straight_one", ["base", "distilled"])
def test_verdict_comes_out_either_way(tmp_path: Path, straight_one: str) -> None:
    models = {"base": toy_model(), "distilled": toy_model(), straight_one: straightened()}
    study = toy_study(toy_model(), word_tasks={"next": TASKS["next"]})
    sources = load_sources(models, tokenizer=toy_tokenizer(), hook_name="blocks.0.hook_resid_pre")
    options = dataclasses.replace(OPTIONS, n_components=2)
    verdict = geometry_experiment(
        dataclasses.replace(study, sources=sources), options, folder=tmp_path
    ).verdict
    where = {"distilled": "The paper's finding at 14B shows", "base": "The paper's finding at 1.5B shows"}
    assert verdict.startswith(where[straight_one])


def test_a_control_is_measured_beside_both(tmp_path: Path) -> None:
    study = toy_study(toy_model(seed=1))
    toy_model(seed=2).save_pretrained(tmp_path / "model")
    toy_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "out").mkdir()
    options = dataclasses.replace(OPTIONS, control_model=str(tmp_path / "model"))
    verdict = geometry_experiment(study, options, folder=tmp_path / "out").verdict
    assert "Against the control, the base trained on without traces" in verdict
    differences = rows(tmp_path / "out" / "parallelogram_difference.csv")
    assert {(row["first"], row["second"]) for row in differences} == {
        ("distilled", "base"),
        ("control", "base"),
        ("distilled", "control"),
    }


def test_bad_options_and_missing_words_raise(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="n_resamples must be at least 1"):
        GeometryOptions(n_resamples=0)
    with pytest.raises(ValueError, match="confidence"):
        GeometryOptions(confidence=1.0)
    with pytest.raises(ValueError, match="no word pairs"):
        geometry_experiment(toy_study(toy_model(), word_tasks={}), OPTIONS, folder=tmp_path)
