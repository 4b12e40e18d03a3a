"""Verdicts on a crosscoder that has exactly what was planted: counts, summary, explanation, CSV."""

import csv
import dataclasses
import functools
import math
from pathlib import Path

import pytest
import torch

from crosscoders.diffing.planted import RIGHT_VERDICT
from crosscoders.diffing.verdicts import (
    SPECIFIC,
    UNDECIDED,
    VERDICTS,
    NullReference,
    Power,
    PowerAtRate,
    Thresholds,
    Verdicts,
    gather_evidence,
    judge_all,
)
from crosscoders.latents import LatentTable
from tests.diffing.verdicts.known_world import aligned, held_out, known_crosscoder, known_world

UNEQUAL, EQUAL = (48, 72), (64, 64)


@functools.cache
def verdicts(d_models: tuple[int, int]) -> Verdicts:
    world = known_world(d_models)
    silent = torch.zeros(1, sum(d_models))
    silent[:, : d_models[0]] = 1.0  # one latent more, which never fires and looks exclusive by its norms
    crosscoder = known_crosscoder(world, extra=silent)
    with torch.no_grad():
        crosscoder.b_enc[-1] = -1.0
    evidence = gather_evidence(crosscoder, held_out(world))
    return Verdicts(
        pair=("base", "distilled"),
        evidence=evidence,
        judgements=judge_all(evidence, Thresholds()),
        thresholds=Thresholds(),
        alignment=aligned(world),
    )


def without_verdicts() -> Verdicts:
    return Verdicts(
        pair=("base", "distilled"),
        evidence=None,
        judgements=(),
        thresholds=Thresholds(),
        alignment=aligned(known_world(UNEQUAL), is_permuted=True),
    )


@pytest.mark.parametrize("d_models", [UNEQUAL, EQUAL])
def test_every_feature_gets_the_verdict_that_was_planted(d_models: tuple[int, int]) -> None:
    said = [found.verdict for found in verdicts(d_models).judgements]
    for verdict, feature in zip(said, known_world(d_models).features):
        if feature.kind == "rotated" and d_models == UNEQUAL:
            assert verdict == "shared"  # without a common space there is no direction to compare
        else:
            assert verdict == RIGHT_VERDICT[feature.kind]


def test_survivors_are_the_exclusive_features_with_their_owners() -> None:
    found, features = verdicts(UNEQUAL), known_world(UNEQUAL).features
    exclusive = [i for i, feature in enumerate(features) if feature.kind == "exclusive"]
    assert found.latents().tolist() == exclusive
    assert found.is_called().nonzero().flatten().tolist() == exclusive
    assert found.evidence is not None
    assert found.evidence["stronger"][exclusive].tolist() == [features[i].owner for i in exclusive]
    line = next(line for line in found.summary().splitlines() if line.startswith("Model-specific: "))
    owners = [("base", "distilled")[features[i].owner or 0] for i in exclusive]
    assert line == "Model-specific: " + ", ".join(f"{i} ({o})" for i, o in zip(exclusive, owners)) + "."


def test_latents_that_never_fire_are_neither_counted_nor_screened() -> None:
    found = verdicts(UNEQUAL)
    assert found.judgements[-1].verdict == UNDECIDED
    assert sum(found.counts().values()) == len(found.judgements) - 1
    assert list(found.counts()) == list(VERDICTS)
    kinds = [feature.kind for feature in known_world(UNEQUAL).features]
    n_silent = kinds.count("exclusive") + kinds.count("reused")
    assert found.n_screened() == n_silent
    assert found.evidence is not None
    share = found.evidence["norm_share"].clone()
    share[[kinds.index("shared"), kinds.index("rescaled")]] = torch.tensor([0.05, 0.95]).double()
    by_norms = LatentTable({**found.evidence.columns, "norm_share": share}, found.evidence.n_tokens)
    assert dataclasses.replace(found, evidence=by_norms).n_screened() == n_silent + 2


def test_the_first_line_says_what_was_not_measured() -> None:
    first, *rest = verdicts(UNEQUAL).summary().splitlines()
    assert first == (
        "base against distilled: 8 of 16 survive; chance not measured (name a null pair); "
        "power not measured (nothing planted)."
    )
    assert "Stability over seeds: not measured." in rest
    assert any(line.startswith("Direction between the models: not measured") for line in rest)
    assert not any("Direction" in line for line in verdicts(EQUAL).summary().splitlines())


def test_the_first_line_says_what_the_null_expects_and_the_power() -> None:
    known = verdicts(UNEQUAL)
    null = NullReference(name="benign drift", n_crosscoders=1, n_live={-3: 200}, n_false={-3: 2})
    at = PowerAtRate(rate=0.005, n_planted=16, n_recovered=15, n_specific=14)
    power = Power(rates=(at,), known_direction_specific=0, known_direction_planted=0, strength=0.2)
    found = Verdicts(
        pair=known.pair,
        evidence=known.evidence,
        judgements=known.judgements,
        thresholds=known.thresholds,
        alignment=known.alignment,
        nulls=(null,),
        power=power,
    )
    frequency = found.frequency()
    expected, at_most = null.expected(frequency[frequency > 0])
    assert found.summary().splitlines()[0] == (
        f"base against distilled: 8 of 16 survive; the null expects {expected:.1f} (at most {at_most:.1f}); "
        "power 0.88 at 0.5%."
    )
    assert expected == pytest.approx(0.01 * int((frequency > 0).sum()))


def test_none_is_said_where_none_survives() -> None:
    known = verdicts(UNEQUAL)
    strict = Thresholds(min_firings=10**9)
    assert known.evidence is not None
    found = Verdicts(
        pair=known.pair,
        evidence=known.evidence,
        judgements=judge_all(known.evidence, strict),
        thresholds=strict,
        alignment=known.alignment,
    )
    assert found.summary().startswith("base against distilled: none of 16 survives; ")


def test_explain_gives_verdict_reason_and_every_figure() -> None:
    found = verdicts(UNEQUAL)
    latent = int(found.latents()[0])
    lines = found.explain(latent).splitlines()
    assert lines[0] == f"latent {latent}: {SPECIFIC}"
    assert "squared ratio" in lines[1]
    assert found.evidence is not None
    figures = dict(line.split(maxsplit=1) for line in lines[2:])
    assert list(figures) == list(found.evidence.columns)
    assert figures["n_firings"] == str(int(found.evidence["n_firings"][latent]))
    assert float(figures["ratio"]) == pytest.approx(float(found.evidence["ratio"][latent]), rel=1e-5)
    assert "not measured" in figures["kappa"]


def test_the_csv_holds_every_figure(tmp_path: Path) -> None:
    found = verdicts(EQUAL)
    found.to_csv(tmp_path / "verdicts.csv")
    with (tmp_path / "verdicts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert found.evidence is not None
    assert [int(row["latent"]) for row in rows] == list(range(len(found.judgements)))
    assert [(row["verdict"], row["reason"]) for row in rows] == [
        (judged.verdict, judged.reason) for judged in found.judgements
    ]
    for name, column in found.evidence.columns.items():
        read = torch.tensor([math.nan if row[name] == "" else float(row[name]) for row in rows]).double()
        torch.testing.assert_close(read, column.double(), rtol=1e-5, atol=0, equal_nan=True)


def test_without_alignment_there_is_a_message_and_nothing_else(tmp_path: Path) -> None:
    found = without_verdicts()
    assert found.summary().startswith("base against distilled: sources not aligned: ")
    assert found.summary().endswith("\nNo verdict is given.")
    asks = (
        found.counts, found.latents, found.is_called, found.frequency, found.n_screened,
        lambda: found.explain(0), lambda: found.to_csv(tmp_path / "no.csv"),
    )  # fmt: skip
    for ask in asks:
        with pytest.raises(ValueError, match="no verdicts; sources not aligned"):
            ask()
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_are_refused() -> None:
    found = verdicts(UNEQUAL)
    with pytest.raises(ValueError, match="special"):
        found.latents("special")
    with pytest.raises(ValueError, match="special"):
        found.is_called("special")
    with pytest.raises(ValueError, match=r"outside 0\.\.44"):
        found.explain(45)
    assert found.evidence is not None
    with pytest.raises(KeyError, match="kappa"):
        judge_all(
            type(found.evidence)({k: v for k, v in found.evidence.columns.items() if k[:5] != "kappa"}, 10),
            Thresholds(),
        )
