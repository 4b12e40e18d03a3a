"""`GeometryProbe`: the parallelogram loss of word pairs in two models, with null, interval and difference."""

import math
import zlib
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.bootstrap import percentile_interval
from crosscoders.geometry.parallelogram import (
    Scale,
    draw_quadruples,
    mean_loss,
    mean_squared_norm,
    parallelogram_loss,
    quadruple_points,
)
from crosscoders.geometry.principal import PrincipalAxes, principal_axes
from crosscoders.geometry.resampling import (
    draw_permutations,
    draw_resamples,
    permutation_null,
    resampled_losses,
)
from crosscoders.geometry.results import (
    FEWEST_PAIRS_FOR_INTERVALS,
    ParallelogramResult,
    ParallelogramScore,
)
from crosscoders.geometry.word_vectors import (
    KnownTask,
    Words,
    WordVectors,
    as_word_tasks,
    read_word_vectors,
)
from crosscoders.harvest import ModelSources


class GeometryProbe:
    """Asks how well word pairs of one relation form parallelograms in each source.

    A word's vector is the residual activation at its last token, projected to the leading principal
    components of its source. The loss is that of `crosscoders.geometry.parallelogram`, averaged over
    quadruples drawn with the same seed in every source; "task" means the task's own points, each pair
    counting alike, "all" the different words of all tasks given. Raw losses of two models differ with the
    shape of their point clouds alone, so every loss comes beside its null, and differences can be taken
    relative to it.

    Everything random derives from `seed` and the task's name: a task's figures do not depend on the others'
    randomness.

    Args:
        sources: Models, each read at its hook, and their tokenizer.
        n_components: Principal components kept.
        scale: Scale of the loss: "all", "task", "dp" or "dp_0m".
        pca: "pooled" fits one basis per source on the different words of all tasks, "task" one per task.
        prefix: Text before every word, such as a space or the tokenizer's BOS token; empty for the bare word.
        n_quadruples: Quadruples per task.
        n_permutations: Shuffles of the null.
        n_resamples: Bootstrap samples.
        confidence: Coverage of the intervals.
        seed: Seed of quadruples, shuffles and samples.
        batch_words: Words that go through the models together.

    Raises:
        ValueError: An unknown scale or kind of PCA, more components than a source is wide, or a count below
            one.

    Example:
        probe = GeometryProbe(sources)
        print(probe.parallelogram(read_word_tasks("abstractive")).difference("distilled", "base"))
    """

    @typed
    def __init__(
        self,
        sources: ModelSources,
        *,
        n_components: int = 20,
        scale: Scale = "task",
        pca: Literal["pooled", "task"] = "pooled",
        prefix: str = "",
        n_quadruples: int = 10_000,
        n_permutations: int = 999,
        n_resamples: int = 1_000,
        confidence: float = 0.95,
        seed: int = 0,
        batch_words: int = 256,
    ) -> None:
        counts = (n_components, n_quadruples, n_permutations, n_resamples, batch_words)
        if min(counts) < 1 or not 0 < confidence < 1:
            raise ValueError(
                f"GeometryProbe: counts must be at least 1 and confidence inside (0, 1), got {counts} and "
                f"{confidence}."
            )
        for source in sources.sources:
            if n_components > source.d_model:
                raise ValueError(
                    f"GeometryProbe: n_components={n_components} exceeds the width {source.d_model} of "
                    f"source {source.name!r}; lower it."
                )
        self._sources = sources
        self.scale: Scale = scale
        self.n_components, self.pca, self.prefix = n_components, pca, prefix
        self.n_quadruples, self.n_permutations, self.n_resamples = n_quadruples, n_permutations, n_resamples
        self.confidence, self.seed, self._batch_words = confidence, seed, batch_words

    @typed
    def read(self, words: Words, *, strict: bool = False) -> WordVectors:
        """Run the words through the models once, for several calls of `parallelogram`.

        Args:
            words: Tasks, pairs by task name, or the bare pairs of one task.
            strict: Raise at an unknown word instead of dropping its pairs.

        Returns:
            One vector per different word and source.

        Raises:
            ValueError: No task with two pairs of known words, or an unknown word where `strict`.
        """
        return read_word_vectors(
            self._sources,
            as_word_tasks(words),
            prefix=self.prefix,
            strict=strict,
            batch_words=self._batch_words,
        )

    @typed
    def parallelogram(
        self, words: Words | WordVectors, *, scale: Scale | None = None, strict: bool = False
    ) -> ParallelogramResult:
        """Parallelogram loss of each task in each source.

        Args:
            words: Tasks, pairs by task name, the bare pairs of one task, or what `read` gave.
            scale: Another scale than the probe's.
            strict: Raise at an unknown word instead of dropping its pairs.

        Returns:
            Loss, interval over word pairs, null and counts by task and source, with their differences.

        Raises:
            ValueError: No task with two pairs of known words and a quadruple that is not trivial, too few
                different words for the principal components, or an unknown word where `strict`.
        """
        read = words if isinstance(words, WordVectors) else self.read(words, strict=strict)
        scores: list[ParallelogramScore] = []
        resampled: dict[tuple[str, str], Tensor] = {}
        skipped = dict(read.skipped)
        pooled, chosen = self._pooled_axes(read), self.scale if scale is None else scale
        for task in read.tasks:
            draws = _Draws(task, self)
            useless = _useless_source(task, read, draws)
            if useless is not None:
                skipped[task.name] = (
                    f"task {task.name!r}: all {self.n_quadruples} quadruples of its {len(task.pairs)} pairs "
                    f"are trivial in source {useless!r}; its inputs and outputs have the same vectors"
                )
                continue
            for name, vectors in read.vectors.items():
                axes = pooled[name] if self.pca == "pooled" else self._task_axes(task, name, vectors)
                score, losses = self._score(task, axes.project(vectors), draws, source=name, scale=chosen)
                scores.append(score)
                resampled[task.name, name] = losses
        if not scores:
            raise ValueError(f"GeometryProbe: no task is left to score: {'; '.join(skipped.values())}.")
        return ParallelogramResult(
            scores=tuple(scores), resampled=resampled, confidence=self.confidence, skipped=skipped
        )

    def _pooled_axes(self, read: WordVectors) -> Mapping[str, PrincipalAxes]:
        if self.pca == "task":
            return {}
        return {
            name: principal_axes(vectors, n_components=self.n_components, where=f"source {name!r}, all tasks")
            for name, vectors in read.vectors.items()
        }

    def _task_axes(self, task: KnownTask, source: str, vectors: Tensor) -> PrincipalAxes:
        return principal_axes(
            vectors[task.pairs.unique()],
            n_components=self.n_components,
            where=f"source {source!r}, task {task.name!r}",
        )

    def _score(
        self, task: KnownTask, points: Tensor, draws: "_Draws", *, source: str, scale: Scale
    ) -> tuple[ParallelogramScore, Tensor]:
        """Score of one task in one source, and the losses of its bootstrap samples."""
        inputs, outputs = points[task.pairs[:, 0]], points[task.pairs[:, 1]]
        vocabulary = mean_squared_norm(points) if scale == "all" else None
        own = mean_squared_norm(points[task.pairs]) if scale == "task" else vocabulary
        quadruples = quadruple_points(inputs, outputs, quadruples=draws.quadruples)
        found = mean_loss(parallelogram_loss(quadruples, scale=scale, reference=own))
        shared = {"quadruples": draws.quadruples, "scale": scale, "reference": vocabulary}
        null = permutation_null(inputs, outputs, permutations=draws.permutations, **shared)
        losses = resampled_losses(inputs, outputs, resamples=draws.resamples, **shared)
        enough = len(task.pairs) >= FEWEST_PAIRS_FOR_INTERVALS
        low, high = percentile_interval(losses, confidence=self.confidence) if enough else (math.nan,) * 2
        score = ParallelogramScore(
            task=task.name,
            source=source,
            scale=scale,
            loss=found.loss,
            low=low,
            high=high,
            null_mean=null.mean,
            p_value=null.p_value,
            n_pairs=len(task.pairs),
            n_words=task.pairs.unique().numel(),
            n_unknown=task.n_unknown,
            n_dropped_pairs=task.n_dropped,
            n_quadruples=found.n_kept,
            n_trivial=found.n_trivial,
            n_degenerate=found.n_degenerate,
            null_dropped_share=null.dropped_share,
        )
        return score, losses


def _useless_source(task: KnownTask, read: WordVectors, draws: "_Draws") -> str | None:
    """A source in which no quadruple of the task says anything, if there is one."""
    for name, vectors in read.vectors.items():
        inputs, outputs = vectors[task.pairs].double().unbind(dim=1)
        points = quadruple_points(inputs, outputs, quadruples=draws.quadruples)
        if mean_loss(parallelogram_loss(points, scale="dp_0m")).n_kept == 0:
            return name
    return None


class _Draws:
    """The quadruples, shuffles and samples of one task, the same in every source."""

    def __init__(self, task: KnownTask, probe: GeometryProbe) -> None:
        def generator(what: str) -> torch.Generator:
            return torch.Generator().manual_seed(zlib.crc32(f"{probe.seed}/{what}/{task.name}".encode()))

        n = len(task.pairs)
        self.quadruples = draw_quadruples(
            n, n_quadruples=probe.n_quadruples, generator=generator("quadruples")
        )
        self.permutations = draw_permutations(
            n, n_permutations=probe.n_permutations, generator=generator("permutations")
        )
        self.resamples = draw_resamples(n, n_resamples=probe.n_resamples, generator=generator("resamples"))
