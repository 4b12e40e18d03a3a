"""The ablation experiment on two toy models."""

import csv
import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch

from crosscoders.bootstrap import Estimate
from crosscoders.experiments.ablation.experiment import AblationOptions, ablation_experiment
from crosscoders.experiments.ablation.measure import measure_category
from crosscoders.experiments.ablation.tables import Comparison, comparison_name
from crosscoders.experiments.ablation.verdict import verdict
from crosscoders.experiments.catalog import experiment_options
from crosscoders.experiments.study import Material, Study
from crosscoders.interventions.ablation.effects import LatentEdit, ablation_effects
from crosscoders.latents import TokenBatch, tabulate_latents
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.corpus import Corpus
from tests.interventions.ablation_cases import TOKENS, at, toy_crosscoder, toy_sources

OPTIONS = AblationOptions(
    top_percents=(10.0, 50.0), nrn_above=0.41, n_random_sets=2, n_occurrences=16, max_match_ratio=50.0
)


def toy_study() -> Study:
    crosscoder, sources = toy_crosscoder(), toy_sources()
    rows = sources.harvest(TOKENS).flatten(0, 1)
    ids = TOKENS.flatten()
    table = tabulate_latents(crosscoder, [TokenBatch(rows=rows, token_ids=ids, origin=torch.zeros_like(ids))])
    odd = torch.arange(9).expand(4, 9) % 2 == 1
    return Study(
        config=RunConfig(base="a", distilled="b", text="t", out="o", n_latents=20),
        crosscoder=crosscoder,
        sources=sources,
        corpus=Corpus(train=TOKENS[:0], held_out=TOKENS, origin=torch.zeros_like(TOKENS)),
        latents=table,
        material=Material(
            markers={"deductive": odd, "contrastive": ~odd, "alternative": torch.zeros_like(odd)},
            prompts=(),
            count_categories=lambda ids: {},
            stop_ids=(),
        ),
    )


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_tables_hold_what_the_library_measures(tmp_path: Path) -> None:
    study = toy_study()
    finding = ablation_experiment(study, OPTIONS, folder=tmp_path)
    sets = {row["top_percent"]: row["latents"] for row in read_csv(tmp_path / "ablation_sets.csv")}
    edit = LatentEdit(latents=torch.tensor([int(latent) for latent in sets["50"].split()]))
    odd = [(r, p) for r in range(4) for p in (1, 3, 5, 7)]
    effects = ablation_effects(study.crosscoder, study.sources, TOKENS, at(*odd), {"e": edit})
    found = {
        (row["source"], row["edit"], row["draw"], row["baseline"]): row
        for row in read_csv(tmp_path / "ablation.csv")
        if (row["category"], row["top_percent"]) == ("deductive", "50")
    }
    for source in ("base", "distilled"):
        row, change = found[source, "ablated", "", "clean"], float(effects.change("e", source).logit.mean())
        assert math.isclose(float(row["logit_change"]), change, rel_tol=1e-4)
        assert float(row["logit_low"]) < change < float(row["logit_high"])
        one, two = (
            float(found[source, "random, matched", draw, "clean"]["logit_change"]) for draw in ("1", "2")
        )
        mean = float(found[source, "random, matched", "", "clean"]["logit_change"])
        assert math.isclose(mean, (one + two) / 2, rel_tol=1e-6)
        assert {(source, "replacement", "", b) for b in ("clean", "reconstruction")} <= set(found)
    assert {key[0] for key in found if key[1] == "norm-matched"} == {"base"}
    assert "Skipped for want of a single occurrence: alternative." in finding.lines
    assert all((tmp_path / f"{name}.{kind}").exists() for name in finding.figures for kind in ("png", "svg"))


def test_the_same_seed_gives_the_same_figures() -> None:
    study, found = toy_study(), []
    options = dataclasses.replace(OPTIONS, top_percents=(50.0,), with_replacement=False)
    sets = {50.0: torch.tensor([1, 4, 12])}
    for seed in (0, 0, 1):
        m = measure_category(
            study, options, sets, at((0, 3), (2, 8)), generator=torch.Generator().manual_seed(seed)
        )
        found.append([m.change(kind, 50.0, "distilled").logit.tolist() for kind in m.kinds("distilled")])
    assert found[0] == found[1] != found[2]


def comparisons(changes: dict[str, tuple[float, float, float]], *, exceeded: int = 5) -> list[Comparison]:
    """Comparisons of one category from (mean, low, high) of the logit, in the order of `_NAMES`."""
    return [
        Comparison(
            category="deductive",
            percent=20.0,
            what=what,
            intervals={"logit": Estimate(mean=mean, low=low, high=high, n=9)},
            n_draws=5 if "random" in what or "shuffled" in what else None,
            n_exceeded=exceeded if "random" in what or "shuffled" in what else None,
        )
        for what, (mean, low, high) in changes.items()
    ]


def changes(*, base: float, control: float) -> dict[str, tuple[float, float, float]]:
    ours = ("ablated", "distilled")
    others = [("norm-matched", "base"), ("random, matched", "distilled"), ("shuffled identity", "distilled")]
    return {
        comparison_name(ours, None): (-1.0, -1.2, -0.8),
        comparison_name(("ablated", "base"), None): (base, base - 0.1, base + 0.1),
        **{comparison_name(ours, other): (control, control - 0.1, control + 0.1) for other in others},
    }


@pytest.mark.parametrize(
    ("base", "control", "exceeded", "said"),
    [
        (-0.1, -0.5, 5, "shows in every category. Controls: the drop exceeds .* all three in 1 of 1"),
        (-0.1, -0.05, 5, "shows in every category. .* all three in 0 of 1"),
        (-0.1, -0.5, 4, "shows in every category. .*equal relative size in 1 of 1.* all three in 0 of 1"),
        (-0.5, -0.5, 5, "less than 25% of that in 0 of 1, so .* shows in no category. .*three in 1 of 1"),
    ],
)
def test_the_verdict_follows_the_figures(base: float, control: float, exceeded: int, said: str) -> None:
    given = comparisons(changes(base=base, control=control), exceeded=exceeded)
    assert re.search(said, verdict(given, percent=20.0, base="base", distilled="distilled"))


def test_without_a_drop_there_is_nothing_to_control() -> None:
    flat = dict.fromkeys(changes(base=0.0, control=0.0), (0.1, -0.1, 0.3))
    said = verdict(comparisons(flat), percent=20.0, base="base", distilled="distilled")
    assert "drops in 0 of 1 categories" in said
    assert "no drop to hold against the controls" in said


def test_bad_input_says_what_is_wrong(tmp_path: Path) -> None:
    study = toy_study()
    with pytest.raises(ValueError, match=r"top_percents must ascend, .* got \(5.0, 1.0\)"):
        AblationOptions(top_percents=(5.0, 1.0))
    with pytest.raises(ValueError, match="n_random_sets must be at least 1, got 0"):
        AblationOptions(n_random_sets=0)
    with pytest.raises(KeyError, match="nrn_l7"):
        ablation_experiment(study, dataclasses.replace(OPTIONS, nrn_column="nrn_l7"), folder=tmp_path)
    with pytest.raises(ValueError, match=r"has nrn_l1 above 1\.0; lower nrn_above"):
        ablation_experiment(study, dataclasses.replace(OPTIONS, nrn_above=1.0), folder=tmp_path)
    nowhere = {"deductive": torch.zeros_like(TOKENS, dtype=torch.bool)}
    silent = dataclasses.replace(study, material=dataclasses.replace(study.material, markers=nowhere))
    with pytest.raises(ValueError, match=r"none of the categories \['deductive'\] occurs"):
        ablation_experiment(silent, OPTIONS, folder=tmp_path)


def test_options_read_from_plain_values() -> None:
    options = experiment_options("ablation", {"top_percents": [0.5, 5], "of": "thresholded"})
    assert options == AblationOptions(top_percents=(0.5, 5.0), of="thresholded")
