"""What a comparison of verdicts with the planted truth counts, per kind and base rate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from crosscoders._typing import typed
from crosscoders.bootstrap import Estimate, wilson_interval
from crosscoders.diffing.planted.config import Kind

Row = TypeVar("Row", "KindScore", "SpecificScore")


@dataclass(frozen=True, kw_only=True)
class KindScore:
    """What became of the features of one kind and base rate.

    Args:
        kind: Their kind.
        rate: Their base rate; shared features count at the base rate nearest to their own.
        n_features: How many were planted.
        n_recovered: Those that a latent follows.
        n_called: Recovered ones whose latent is called model-specific.
        n_right: Recovered ones whose latent's verdict is what they are.
        n_undecided: Recovered ones on which the verdict is undecided or unstable.
    """

    kind: Kind
    rate: float
    n_features: int
    n_recovered: int
    n_called: int
    n_right: int
    n_undecided: int

    @property
    def n_not_recovered(self) -> int:
        """Features that no latent follows: the crosscoder's failure, not the verdict's."""
        return self.n_features - self.n_recovered

    @property
    def n_misjudged(self) -> int:
        """Recovered features whose latent's verdict is something that they are not."""
        return self.n_recovered - self.n_right - self.n_undecided

    @property
    def called(self) -> Estimate:
        """Share of the recovered features called model-specific, with Wilson's 95% interval."""
        return _share(self.n_called, self.n_recovered)


@dataclass(frozen=True, kw_only=True)
class SpecificScore:
    """How good "model-specific" is at one base rate.

    Args:
        rate: The base rate.
        n_true: Exclusive features whose latent is called model-specific, and of the right source.
        n_false: Latents called model-specific that follow anything else, or nothing that was planted.
        n_unmatched: Those of them that follow nothing that was planted.
        n_missed: Exclusive features that were recovered and not called so.
        n_not_recovered: Exclusive features that no latent follows.
    """

    rate: float
    n_true: int
    n_false: int
    n_unmatched: int
    n_missed: int
    n_not_recovered: int

    @property
    def precision(self) -> Estimate:
        """Share of the calls that are true, with Wilson's 95% interval; NaN without calls."""
        return _share(self.n_true, self.n_true + self.n_false)

    @property
    def recall(self) -> Estimate:
        """Share of the recovered exclusive features that are called so, with Wilson's 95% interval."""
        return _share(self.n_true, self.n_true + self.n_missed)

    @property
    def power(self) -> Estimate:
        """Share of all exclusive features planted that are called so, with Wilson's 95% interval."""
        return _share(self.n_true, self.n_true + self.n_missed + self.n_not_recovered)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall of recovered features; NaN if there is nothing to find."""
        total = 2 * self.n_true + self.n_false + self.n_missed
        return 2 * self.n_true / total if total else math.nan


@dataclass(frozen=True, kw_only=True)
class PlantedScore:
    """Verdicts against the planted truth.

    Args:
        kinds: One entry per kind and base rate.
        specific: One entry per base rate.
    """

    kinds: tuple[KindScore, ...]
    specific: tuple[SpecificScore, ...]

    def of(self, kind: Kind, rate: float) -> KindScore:
        """The features of one kind and base rate.

        Raises:
            ValueError: No such base rate.
        """
        found = [row for row in self.kinds if row.kind == kind and row.rate == rate]
        if not found:
            rates = sorted({row.rate for row in self.kinds}, reverse=True)
            raise ValueError(f"PlantedScore.of: no {kind!r} at {rate}; the base rates are {rates}.")
        return found[0]

    def at(self, rate: float) -> SpecificScore:
        """How good "model-specific" is at one base rate.

        Raises:
            ValueError: No such base rate.
        """
        found = [row for row in self.specific if row.rate == rate]
        if not found:
            raise ValueError(
                f"PlantedScore.at: no base rate {rate}; they are {[row.rate for row in self.specific]}."
            )
        return found[0]

    def lines(self) -> list[str]:
        """The two tables as text."""
        head = f"{'kind':<10} {'rate':>6} {'n':>5} {'recovered':>9} {'specific':>8} {'right':>5}"
        kinds = [
            f"{row.kind:<10} {row.rate:>6.2%} {row.n_features:>5} {row.n_recovered:>9} {row.n_called:>8} "
            f"{row.n_right:>5} {row.n_misjudged:>9} {row.n_undecided:>9}"
            for row in self.kinds
            if row.n_features
        ]
        rates = [
            f"{row.rate:>6.2%} precision {_show(row.precision)} recall {_show(row.recall)} "
            f"power {_show(row.power)} F1 {row.f1:.3f}"
            for row in self.specific
        ]
        return [f"{head} {'misjudged':>9} {'undecided':>9}", *kinds, *rates]


@typed
def pool_scores(scores: Sequence[PlantedScore]) -> PlantedScore:
    """Add up the counts of several worlds, such as seeds.

    Args:
        scores: Scores with the same base rates.

    Returns:
        One score of all.

    Raises:
        ValueError: No score, or other base rates.
    """
    rates = [[row.rate for row in score.specific] for score in scores]
    if not scores or any(other != rates[0] for other in rates):
        raise ValueError(f"pool_scores: expected scores of the same base rates, got those of {rates}.")
    return PlantedScore(
        kinds=tuple(_added(rows) for rows in zip(*(score.kinds for score in scores))),
        specific=tuple(_added(rows) for rows in zip(*(score.specific for score in scores))),
    )


def _added(rows: Sequence[Row]) -> Row:
    """The first row with every count (field `n_...`) added up over all rows."""
    names = [field.name for field in fields(rows[0]) if field.name.startswith("n_")]
    return replace(rows[0], **{name: sum(getattr(row, name) for row in rows) for name in names})


def _share(n_yes: int, n: int) -> Estimate:
    """A share with Wilson's interval; NaN of nothing."""
    low, high = wilson_interval(n_yes, n)
    return Estimate(mean=n_yes / n if n else math.nan, low=low, high=high, n=n)


def _show(share: Estimate) -> str:
    return f"{share.mean:.3f} [{share.low:.3f}, {share.high:.3f}]"
