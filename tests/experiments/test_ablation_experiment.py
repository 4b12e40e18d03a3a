"""The ablation experiment on two toy models."""

import csv
import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from crosscoders.activation_fns import TopK
from crosscoders.bootstrap import Estimate
from crosscoders.experiments.ablation.experiment import AblationOptions, ablation_experiment
from crosscoders.experiments.ablation.measure import edit_name, measure_category
from crosscoders.experiments.ablation.tables import Comparison, compare, comparison_name
from crosscoders.experiments.ablation.verdict import verdict
from crosscoders.experiments.catalog import experiment_options
from crosscoders.experiments.study import Material, Study
from crosscoders.interventions.ablation.effects import LatentEdit, ablation_effects
from crosscoders.interventions.ablation.latent_sets import target_energy
from crosscoders.latents import LatentTable, TokenBatch, tabulate_latents
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.corpus import Corpus
from tests.interventions.ablation_cases import SILENT, TOKENS, at, toy_crosscoder, toy_sources

OPTIONS = AblationOptions(
    top_percents=(10.0, 50.0), nrn_above=0.41, n_random_sets=2, n_occurrences=16, max_match_ratio=50.0
)
PLACES = ((0, 3), (2, 8), (0, 7), (3, 1))
NAN = float("nan")


def toy_study() -> Study:
    crosscoder, sources = toy_crosscoder(), toy_sources()
    rows = sources.harvest(TOKENS).flatten(0, 1)
    ids = TOKENS.flatten()
    table = tabulate_latents(crosscoder, [TokenBatch(rows=rows, token_ids=ids, origin=torch.zeros_like(ids))])
    odd = torch.arange(9).expand(4, 9) % 2 == 1
    return Study(
        config=RunConfig(base="a", distilled="b", text="t", out="o", n_latents=20, activation_fn=TopK(k=2)),
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
        changes = [m.change(kind, 50.0, "distilled") for kind in m.kinds("distilled")]
        found.append([None if change is None else change.logit.tolist() for change in changes])
    assert found[0] == found[1] != found[2]


OURS, BASE = ("ablated", "distilled"), ("ablated", "base")
CONTROLS = (("norm-matched", "base"), ("random, matched", "distilled"), ("shuffled identity", "distilled"))


def comparison(
    what: str,
    mean: float,
    *,
    width: float = 0.1,
    size: float | None = None,
    n_draws: int | None = None,
    n_exceeded: int | None = None,
    category: str = "deductive",
) -> Comparison:
    return Comparison(
        category=category,
        percent=20.0,
        what=what,
        intervals={"logit": Estimate(mean=mean, low=mean - width, high=mean + width, n=9)},
        size_ratio=size,
        n_draws=n_draws,
        n_exceeded=n_exceeded,
    )


def models(
    *, drop: float = -1.0, base: float, width: float = 0.1, category: str = "deductive"
) -> list[Comparison]:
    """The change in both models."""
    ours, still = comparison_name(OURS, None), comparison_name(BASE, None)
    return [
        comparison(ours, drop, category=category),
        comparison(still, base, width=width, category=category),
    ]


def controls(
    *,
    control: float = -0.5,
    n_exceeded: int = 5,
    n_draws: int = 5,
    size: float = 1.0,
    category: str = "deductive",
) -> list[Comparison]:
    """The drop less that of each control; the random one as given, the others of equal size and exceeded."""
    found = []
    for other in CONTROLS:
        given: dict[str, Any] = {"size": 1.0, "category": category}
        if other[0] == "shuffled identity":
            given |= {"n_draws": 5, "n_exceeded": 5}
        if other[0] == "random, matched":
            given |= {"size": size, "n_draws": n_draws, "n_exceeded": n_exceeded}
        found.append(comparison(comparison_name(OURS, other), control, **given))
    return found


def said_of(given: list[Comparison], **more: Any) -> str:
    return verdict(given, percent=20.0, base="base", distilled="distilled", **more)


@pytest.mark.parametrize(
    ("base", "width", "said"),
    [
        (-0.1, 0.1, "finding shows in deductive"),
        (-0.1, 0.2, "finding cannot be told in deductive"),  # small in the mean, but not surely
        (-0.2, 0.1, "finding cannot be told in deductive"),
        (-0.5, 0.1, "finding does not show in deductive"),
        (0.5, 0.1, "finding does not show in deductive"),
    ],
)
def test_the_base_must_stay_with_its_whole_interval(base: float, width: float, said: str) -> None:
    assert said in said_of([*models(base=base, width=width), *controls()])


def test_the_verdict_names_every_category_once() -> None:
    given = [
        *models(base=-0.1, category="a"), *controls(category="a"),
        *models(base=-0.5, category="b"), *controls(category="b"),
        *models(base=-0.2, category="c"), *controls(category="c"),
        *models(base=0.0, drop=0.5, category="d"), *controls(category="d"),
        *models(base=0.0, drop=-0.05, category="e"), *controls(category="e"),
    ]  # fmt: skip
    said = said_of(given, skipped=["f"])
    assert "measured categories a, b, c, d, e; not measured: f: the paper's finding" in said
    assert "finding shows in a; does not show in b, d; cannot be told in c, e. " in said
    assert "drops in 3 of 5 (a, b, c)" in said
    assert "within 25% of that drop in 1 of 3 (a) and beyond it in 1 of 3 (b)" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {},
            r"matched random latents \(size 1.00 to 1.00 .*\) in 1 of 1\. .*controls are exceeded in 1 of 1",
        ),
        ({"control": -0.05}, "random latents .* in 0 of 1.*three controls are exceeded in 0 of 1"),
        ({"n_exceeded": 4}, "equal relative size .*in 1 of 1.* random .* in 0 of 1.* exceeded in 0 of 1"),
        (
            {"size": 0.5, "n_draws": 0, "n_exceeded": 0},
            r"random latents in 0 of 1; not comparable in deductive \(size 0.50 of the set's\).*in 0 of 1",
        ),
        (
            {"size": NAN, "n_draws": 0, "n_exceeded": 0},
            r"random latents in 0 of 1; not comparable in deductive \(control not available\).*in 0 of 1",
        ),
        (
            {"size": 1.0, "n_draws": 0, "n_exceeded": 0},
            r"not comparable in deductive \(size 1.00 of the set's, its draws too unequal\)",
        ),
    ],
)
def test_a_control_counts_only_at_equal_size(given: dict[str, Any], said: str) -> None:
    assert re.search(said, said_of([*models(base=-0.1), *controls(**given)]))


def test_without_a_drop_there_is_nothing_to_control() -> None:
    said = said_of([*models(base=0.0, drop=0.05), *controls()])
    assert "cannot be told in deductive. The distilled logit drops in 0 of 1." in said
    assert "no drop to hold against the controls" in said


@pytest.mark.parametrize("source", ["base", "distilled"])
def test_controls_have_the_size_of_the_set_in_each_model(source: str) -> None:
    study, sets = toy_study(), {50.0: torch.tensor([1, 4, 12])}
    m = measure_category(study, OPTIONS, sets, at(*PLACES), generator=torch.Generator().manual_seed(0))
    own = m.effects.relative_size[edit_name("ablated", 50.0)][source]
    energy = target_energy(study.crosscoder, study.sources, TOKENS, at(*PLACES))
    column = ["base", "distilled"].index(source)
    for draw, chosen in enumerate(m.matches[50.0, source].draws):
        name = edit_name("random, matched", 50.0, draw=draw, source=source)
        assert list(m.effects.edited[name]) == [source]
        size = m.effects.relative_size[name][source]
        assert_close(size, torch.where(size > 0, own, 0.0), rtol=1e-5, atol=0)
        ratio = energy[chosen, column].sum() / energy[sets[50.0], column].sum()
        assert_close(m.matches[50.0, source].energy_ratio[draw], float(ratio))
        assert_close(m.size_ratio(name, 50.0, source), float(size.mean() / own.mean()))
        shuffled = m.effects.relative_size[edit_name("shuffled identity", 50.0, draw=draw)][source]
        assert_close(shuffled, own, rtol=1e-5, atol=0)


def test_draws_of_another_size_or_without_latents_do_not_count() -> None:
    study, sets = toy_study(), {50.0: torch.tensor([1, 4, 12])}
    tight = dataclasses.replace(OPTIONS, max_match_ratio=1.0)  # no partner is that alike
    m = measure_category(study, tight, sets, at(*PLACES), generator=torch.Generator().manual_seed(0))
    assert m.names("random, matched", 50.0, "base") == []
    assert m.change("random, matched", 50.0, "base") is None
    given: dict[str, Any] = {"base": "base", "distilled": "distilled", "generator": torch.Generator()}
    found = {c.what: c for c in compare("deductive", m, sets, **given)}
    control = found["ablated in base - random, matched in base"]
    assert (control.n_draws, control.n_exceeded, control.is_comparable) == (0, 0, False)
    assert not control.is_below
    assert control.intervals["logit"].mean != control.intervals["logit"].mean

    made = edit_name("shuffled identity", 50.0, draw=0)
    assert made in m.counting("shuffled identity", 50.0, "base")
    shown = m.names("shuffled identity", 50.0, "base")
    m.effects.relative_size[made]["base"].mul_(0.7)
    assert m.counting("shuffled identity", 50.0, "base") == []  # one of two is no majority
    assert m.names("shuffled identity", 50.0, "base") == shown  # but it is shown, as of another size
    assert m.change("shuffled identity", 50.0, "distilled") is not None


def test_unavailable_controls_leave_gaps_and_take_nothing_down(tmp_path: Path) -> None:
    study = toy_study()
    whole = dataclasses.replace(
        OPTIONS, nrn_above=0, top_percents=(10, 100), max_match_ratio=1, with_replacement=False
    )
    finding = ablation_experiment(study, whole, folder=tmp_path)
    rows = {
        (row["edit"], row["draw"]): row
        for row in read_csv(tmp_path / "ablation.csv")
        if (row["category"], row["source"], row["top_percent"]) == ("deductive", "base", "100")
    }
    for kind in ("random, matched", "shuffled identity"):
        for draw in ("", "1", "2"):
            row = rows[kind, draw]
            assert (row["n_draws"], row["n_latents"], row["logit_change"]) == ("0", "0", "")
    controls_file = read_csv(tmp_path / "ablation_controls.csv")
    assert {(row["n_latents"], row["counts"], row["latents"]) for row in controls_file} == {("0", "0", "")}
    assert finding.name == "ablation"


def test_a_set_that_never_fires_has_no_controls_of_its_size(tmp_path: Path) -> None:
    study, is_silent = toy_study(), torch.arange(20) == SILENT
    columns = {
        **study.latents.columns,
        "frequency": torch.where(is_silent, 1.0, study.latents["frequency"]),  # it fires on other text
        "nrn_l1": torch.where(is_silent, 0.9, 0.1),
    }
    silent = dataclasses.replace(study, latents=LatentTable(columns, study.latents.n_tokens))
    finding = ablation_experiment(silent, OPTIONS, folder=tmp_path)
    assert "There is no drop to hold against the controls" in finding.verdict
    rows = read_csv(tmp_path / "ablation.csv")
    assert {row["n_draws"] for row in rows if row["edit"] == "shuffled identity"} == {"0"}
    assert {float(row["logit_change"]) for row in rows if row["edit"] == "ablated"} == {0.0}


def test_the_drawn_latents_are_written(tmp_path: Path) -> None:
    ablation_experiment(toy_study(), OPTIONS, folder=tmp_path)
    rows = read_csv(tmp_path / "ablation_controls.csv")
    keys = [(r["category"], r["top_percent"], r["source"], r["draw"]) for r in rows]
    assert len(set(keys)) == len(keys) == 2 * 1 * 2 * 2  # categories, sets with latents, models, draws
    assert all(len(row["latents"].split()) == int(row["n_latents"]) for row in rows)
    drawn = {
        (r["category"], r["top_percent"], r["source"], r["draw"]): r["n_latents"]
        for r in read_csv(tmp_path / "ablation.csv")
        if r["edit"] == "random, matched" and r["draw"]
    }
    assert drawn == dict(zip(keys, (row["n_latents"] for row in rows), strict=True))


def test_percentages_may_be_whole_numbers(tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, top_percents=(10, 50), max_match_ratio=50)
    assert options.top_percents == (10.0, 50.0)
    assert all(isinstance(percent, float) for percent in options.top_percents)
    ablation_experiment(toy_study(), options, folder=tmp_path)
    assert experiment_options("ablation", {"top_percents": [1, 2], "nrn_above": 0}).top_percents == (1.0, 2.0)


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
