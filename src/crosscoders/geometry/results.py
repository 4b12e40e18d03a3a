"""What the parallelogram loss came out as, per task and source, and the difference of two sources."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.bootstrap import percentile_interval
from crosscoders.geometry.parallelogram import Scale
from crosscoders.geometry.resampling import two_sided_p_value

# With fewer pairs a bootstrap sample has too few different ones to say how far they spread.
FEWEST_PAIRS_FOR_INTERVALS = 5


@dataclass(frozen=True, kw_only=True)
class ParallelogramScore:
    """Parallelogram loss of one task in one source.

    Args:
        task: Name of the task.
        source: Name of the source.
        scale: Scale of the loss.
        loss: Mean over the quadruples kept.
        low: Lower end of the interval over word pairs; NaN below five pairs.
        high: Upper end.
        null_mean: Mean loss with shuffled outputs.
        p_value: Share of shuffled data sets with no larger loss (`permutation_null`).
        n_pairs: Pairs of known words.
        n_words: Different vectors among them.
        n_unknown: Different words with an unknown token.
        n_dropped_pairs: Pairs left out because of them.
        n_quadruples: Quadruples averaged over.
        n_trivial: Quadruples dropped because their loss is exactly zero.
        n_degenerate: Quadruples dropped because their scale is zero.
        null_dropped_share: Mean share of quadruples dropped, for either reason, with shuffled outputs.
    """

    task: str
    source: str
    scale: Scale
    loss: float
    low: float
    high: float
    null_mean: float
    p_value: float
    n_pairs: int
    n_words: int
    n_unknown: int
    n_dropped_pairs: int
    n_quadruples: int
    n_trivial: int
    n_degenerate: int
    null_dropped_share: float

    @property
    def relative(self) -> float:
        """Loss over its null mean: 1 without structure, 0 for perfect parallelograms, whatever the scale."""
        return self.loss / self.null_mean


@dataclass(frozen=True, kw_only=True)
class LossDifference:
    """Loss of one task in one source minus that in another.

    Args:
        task: Name of the task.
        estimate: The difference; negative if the first source is the better structured one.
        low: Lower end of the interval over word pairs, the same ones drawn in both; NaN below five pairs.
        high: Upper end.
        p_value: Two-sided bootstrap p-value of no difference; NaN below five pairs.
    """

    task: str
    estimate: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True, kw_only=True)
class ParallelogramDifference:
    """`LossDifference` of every task.

    Args:
        first: Source whose loss counts positive.
        second: Source whose loss is subtracted.
        relative: Whether each loss is divided by its source's null mean.
        tasks: One entry per task.
    """

    first: str
    second: str
    relative: bool
    tasks: tuple[LossDifference, ...]

    @typed
    def to_rows(self) -> list[dict[str, Any]]:
        """One row per task, for a CSV."""
        head = {"first": self.first, "second": self.second, "relative": self.relative}
        return [{**head, **dataclasses.asdict(task)} for task in self.tasks]

    def __str__(self) -> str:
        what = "loss / null mean" if self.relative else "loss"
        lines = [f"{what}, {self.first} minus {self.second} (below 0: {self.first} is better structured)"]
        longest = max(len(task.task) for task in self.tasks)
        lines += [
            f"  {t.task:{longest}}  {t.estimate:+.4f}  [{t.low:+.4f}, {t.high:+.4f}]  p = {t.p_value:.3g}"
            for t in self.tasks
        ]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class ParallelogramResult:
    """Scores of every task in every source.

    Args:
        scores: One per task and source, tasks outermost.
        resampled: Mean loss of each bootstrap sample by (task, source); the samples are the same pairs in
            every source.
        confidence: Coverage of the intervals.
        skipped: Tasks without a score, with the reason: fewer than two known pairs, or only trivial
            quadruples.
    """

    scores: tuple[ParallelogramScore, ...]
    resampled: Mapping[tuple[str, str], Float[Tensor, " _resample"]]
    confidence: float
    skipped: Mapping[str, str]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that have scores."""
        return tuple(dict.fromkeys(score.task for score in self.scores))

    @typed
    def score(self, task: str, source: str) -> ParallelogramScore:
        """The score of one task in one source.

        Args:
            task: Name of the task.
            source: Name of the source.

        Returns:
            The score with its interval.

        Raises:
            ValueError: There is none; the message lists those there are.
        """
        for score in self.scores:
            if (score.task, score.source) == (task, source):
                return score
        sources = sorted({score.source for score in self.scores})
        raise ValueError(
            f"ParallelogramResult: no score of task {task!r} in source {source!r}; the tasks are "
            f"{list(self.tasks)} (skipped: {list(self.skipped)}), the sources {sources}."
        )

    @typed
    def difference(self, first: str, second: str, *, relative: bool = False) -> ParallelogramDifference:
        """Loss in one source minus loss in another, bootstrapped with the same word pairs in both.

        Args:
            first: Name of the source that counts positive, such as "distilled".
            second: Name of the source that is subtracted, such as "base".
            relative: Divide each loss by its source's null mean first, which is held fixed over the samples.
                The quotient compares models whose points spread differently among axes.

        Returns:
            Estimate, percentile interval and p-value of each task.

        Raises:
            ValueError: No such source.
        """
        return ParallelogramDifference(
            first=first,
            second=second,
            relative=relative,
            tasks=tuple(self._difference(task, first, second, relative=relative) for task in self.tasks),
        )

    def _difference(self, task: str, first: str, second: str, *, relative: bool) -> LossDifference:
        scores = self.score(task, first), self.score(task, second)
        units = [score.null_mean if relative else 1.0 for score in scores]
        values = self.resampled[task, first] / units[0] - self.resampled[task, second] / units[1]
        enough = scores[0].n_pairs >= FEWEST_PAIRS_FOR_INTERVALS
        low, high = percentile_interval(values, confidence=self.confidence) if enough else (math.nan,) * 2
        return LossDifference(
            task=task,
            estimate=scores[0].loss / units[0] - scores[1].loss / units[1],
            low=low,
            high=high,
            p_value=two_sided_p_value(values) if enough else math.nan,
        )

    @typed
    def to_rows(self) -> list[dict[str, Any]]:
        """One row per task and source, for a CSV."""
        return [{**dataclasses.asdict(score), "relative": score.relative} for score in self.scores]

    def __str__(self) -> str:
        longest = max(len(score.task) for score in self.scores)
        widest = max(len(score.source) for score in self.scores)
        lines = [
            f"{s.task:{longest}}  {s.source:{widest}}  {s.loss:.4f}  [{s.low:.4f}, {s.high:.4f}]  "
            f"null {s.null_mean:.4f}  p = {s.p_value:.3g}  ({s.n_pairs} pairs)"
            for s in self.scores
        ]
        return "\n".join([*lines, *(f"skipped: {reason}" for reason in self.skipped.values())])
