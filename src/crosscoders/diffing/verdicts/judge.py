"""The verdict on a latent: tests in a fixed order, the first that applies decides.

The order, the same for both sources:

1. too rare (few firings, or few sequences): undecided;
2. no source writes measurably when it fires: undecided;
3. the weaker source is silent (interval of the squared ratio below `absent`):
   a partner that fires with it carries the weaker source's part: artifact (decoupling);
   its direction is one that both models have: re-used;
   other seeds do not find it: unstable, or undecided where the interval spans the threshold;
   otherwise: model-specific;
4. the interval spans `absent`: undecided;
5. both write. The decoder norms alone call it exclusive: artifact (shrinkage);
   the two directions differ: rotated;
   one writes less: re-scaled;
   otherwise: shared; where an interval spans one of the two thresholds: undecided.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

from crosscoders._typing import typed
from crosscoders.diffing.verdicts.thresholds import Thresholds

SPECIFIC, SHARED, RESCALED, REUSED, ROTATED = "model-specific", "shared", "re-scaled", "re-used", "rotated"
SHRINKAGE, DECOUPLING = "artifact (shrinkage)", "artifact (decoupling)"
UNSTABLE, UNDECIDED = "unstable", "undecided"
VERDICTS = (SPECIFIC, REUSED, ROTATED, RESCALED, SHARED, SHRINKAGE, DECOUPLING, UNSTABLE, UNDECIDED)
Row = Mapping[str, float | int]


@final
@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What was decided about one latent.

    Args:
        verdict: One of `VERDICTS`.
        reason: The test that decided, with its figures.
    """

    verdict: str
    reason: str


@typed
def judge(row: Row, thresholds: Thresholds) -> Judgement:
    """Decide about one latent from its evidence; NaN counts neither for nor against anything.

    Args:
        row: One row of `Evidence`: `n_firings`, `n_sequences`, `ratio`, `ratio_low`, `ratio_high` (squared
            strength of the weaker source over that of the stronger), `kappa` with its interval, `norm_share`,
            `reuse_cosine`, `partner_correlation`, `stability` with its interval. Not measured is NaN.
        thresholds: Where the lines are.

    Returns:
        The verdict with the test that decided.

    Raises:
        KeyError: A figure is missing from the row.
    """
    for test in _TESTS:
        found = test(row, thresholds)
        if found is not None:
            return found
    return Judgement(verdict=SHARED, reason="both sources write it, alike in strength" + _and_direction(row))


def _too_rare(row: Row, at: Thresholds) -> Judgement | None:
    n, sequences = int(row["n_firings"]), int(row["n_sequences"])
    if n >= at.min_firings and sequences >= at.min_sequences:
        return None
    needed = f"needs {at.min_firings} in {at.min_sequences}"
    return Judgement(verdict=UNDECIDED, reason=f"too rare: {n} firings in {sequences} sequences, {needed}")


def _unmeasured(row: Row, at: Thresholds) -> Judgement | None:
    if row["ratio_low"] <= row["ratio_high"]:  # False for NaN
        return None
    return Judgement(verdict=UNDECIDED, reason="neither source writes measurably when it fires")


def _silent(row: Row, at: Thresholds) -> Judgement | None:
    if row["ratio_high"] >= at.absent:
        return None
    told = f"squared ratio {_interval(row, 'ratio')}, below {at.absent:g}"
    if row["partner_correlation"] >= at.partner:
        return Judgement(
            verdict=DECOUPLING,
            reason=f"{told}, but latent {int(row['partner'])} of the other source fires with it "
            f"(correlation {row['partner_correlation']:.2f})",
        )
    if row["reuse_cosine"] >= at.reused:
        return Judgement(
            verdict=REUSED,
            reason=f"{told}, but its direction is that of latent {int(row['reuse_latent'])}, which both have "
            f"(cosine {row['reuse_cosine']:.2f})",
        )
    if row["stability_high"] < at.stable:
        return Judgement(verdict=UNSTABLE, reason=f"{told}, but {_stability(row, at)}")
    if row["stability_low"] < at.stable:
        return Judgement(verdict=UNDECIDED, reason=f"{told}, but the interval spans: {_stability(row, at)}")
    return Judgement(verdict=SPECIFIC, reason=f"{told}; no partner, no known direction")


def _unclear_silence(row: Row, at: Thresholds) -> Judgement | None:
    if row["ratio_low"] > at.absent:
        return None
    told = f"squared ratio {_interval(row, 'ratio')} spans {at.absent:g}"
    return Judgement(verdict=UNDECIDED, reason=told)


def _shrunken(row: Row, at: Thresholds) -> Judgement | None:
    share = row["norm_share"]
    if not (share > at.one_sided or share < 1 - at.one_sided):
        return None
    told = f"decoder norms put {share:.2f} on the second source, yet both write it"
    return Judgement(verdict=SHRINKAGE, reason=f"{told} (squared ratio {_interval(row, 'ratio')})")


def _rotated(row: Row, at: Thresholds) -> Judgement | None:
    if row["kappa_high"] < at.rotated:
        return Judgement(
            verdict=ROTATED,
            reason=f"both write it, in directions of cosine {_interval(row, 'kappa')}, below {at.rotated:g}",
        )
    return None


def _rescaled(row: Row, at: Thresholds) -> Judgement | None:
    if row["ratio_high"] < at.rescaled:
        told = f"squared ratio {_interval(row, 'ratio')}, between {at.absent:g} and {at.rescaled:g}"
        return Judgement(verdict=RESCALED, reason=told)
    return None


def _unclear_change(row: Row, at: Thresholds) -> Judgement | None:
    for name, line in (("kappa", at.rotated), ("ratio", at.rescaled)):
        if row[f"{name}_low"] < line:
            told = "cosine of the directions" if name == "kappa" else "squared ratio"
            return Judgement(verdict=UNDECIDED, reason=f"{told} {_interval(row, name)} spans {line:g}")
    return None


_TESTS: tuple[Callable[[Row, Thresholds], Judgement | None], ...] = (
    _too_rare,
    _unmeasured,
    _silent,
    _unclear_silence,
    _shrunken,
    _rotated,
    _rescaled,
    _unclear_change,
)


def _interval(row: Row, name: str) -> str:
    return f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"


def _stability(row: Row, at: Thresholds) -> str:
    return f"other seeds find it with correlation {_interval(row, 'stability')}, wanted {at.stable:g}"


def _and_direction(row: Row) -> str:
    return "" if row["kappa"] != row["kappa"] else " and direction"
