"""The verdict on one latent: every test in its turn, alike for both sources."""

import math

import pytest

from crosscoders.diffing.verdicts import (
    DECOUPLING,
    RESCALED,
    REUSED,
    ROTATED,
    SHARED,
    SHRINKAGE,
    SPECIFIC,
    UNDECIDED,
    UNSTABLE,
    Thresholds,
    judge,
)

AT = Thresholds()


def around(name: str, value: float, half: float = 0.005) -> dict[str, float]:
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}


def row(**changes: float) -> dict[str, float]:
    """A latent that both sources write alike."""
    both = {"n_firings": 1000, "n_sequences": 300, "norm_share": 0.5, "stronger": 1}
    both |= around("ratio", 0.98) | around("kappa", 0.95)
    both |= {"reuse_cosine": 0.3, "reuse_latent": 4, "partner_correlation": 0.1, "partner": 7}
    return both | around("stability", math.nan) | changes


SILENT = around("ratio", 0.01) | {"norm_share": 0.97}


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, SHARED),
        ({"n_firings": 99}, UNDECIDED),
        ({"n_sequences": 19}, UNDECIDED),
        (around("ratio", math.nan), UNDECIDED),
        (SILENT, SPECIFIC),
        (SILENT | {"partner_correlation": 0.95}, DECOUPLING),
        (SILENT | {"reuse_cosine": 0.97}, REUSED),
        (SILENT | {"partner_correlation": 0.95, "reuse_cosine": 0.97}, DECOUPLING),
        (SILENT | around("stability", 0.2), UNSTABLE),
        (SILENT | around("stability", AT.stable, 0.1), UNDECIDED),
        (SILENT | around("stability", 0.95), SPECIFIC),
        (around("ratio", AT.absent, 0.02), UNDECIDED),
        (around("ratio", AT.absent, 0.02) | {"reuse_cosine": 0.97}, UNDECIDED),
        ({"norm_share": 0.95}, SHRINKAGE),
        ({"norm_share": 0.05}, SHRINKAGE),
        (around("kappa", 0.1), ROTATED),
        (around("kappa", 0.1) | around("ratio", 0.3), ROTATED),
        (around("ratio", 0.3), RESCALED),
        (around("kappa", AT.rotated, 0.05), UNDECIDED),
        (around("ratio", AT.rescaled, 0.05), UNDECIDED),
        (around("kappa", math.nan), SHARED),
        (around("kappa", math.nan) | around("ratio", 0.3), RESCALED),
    ],
)
def test_each_test_decides_in_its_turn(changes, verdict):
    assert judge(row(**changes), AT).verdict == verdict


@pytest.mark.parametrize("changes", [SILENT, around("ratio", 0.3), {"norm_share": 0.95}, {}])
def test_the_verdict_is_the_same_for_both_sources(changes):
    there = row(**changes)
    back = there | {"stronger": 1 - there["stronger"], "norm_share": 1 - there["norm_share"]}
    assert judge(back, AT).verdict == judge(there, AT).verdict


def test_an_interval_below_the_noise_still_counts_as_silent():
    below = row(ratio=-0.01, ratio_low=-0.03, ratio_high=0.02)
    assert judge(below, AT).verdict == SPECIFIC


def test_the_reason_holds_the_deciding_figures():
    reused = judge(row(**SILENT, **{"reuse_cosine": 0.97, "reuse_latent": 12}), AT)
    assert "latent 12" in reused.reason
    assert "0.97" in reused.reason
    assert "99 firings" in judge(row(n_firings=99), AT).reason


def test_missing_evidence_raises():
    with pytest.raises(KeyError, match="ratio"):
        judge({"n_firings": 1000, "n_sequences": 300}, AT)


@pytest.mark.parametrize(
    "wrong", [{"absent": 0.0}, {"stable": 1.0}, {"min_firings": 1}, {"absent": 0.7, "rescaled": 0.6}]
)
def test_thresholds_refuse_what_makes_no_sense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Thresholds(**wrong)
