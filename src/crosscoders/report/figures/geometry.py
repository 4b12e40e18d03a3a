"""Figures of feature geometry: parallelograms of word pairs, structure of activations and decoders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crosscoders._typing import typed
from crosscoders.geometry import LossDifference, ParallelogramScore
from crosscoders.report.figures.style import GRAY, INK, LINES, draw

_ROW_INCHES = 0.55


@typed
def parallelogram_losses(
    scores: Sequence[ParallelogramScore],
    differences: Mapping[str, Sequence[LossDifference]],
    relative: Mapping[str, Sequence[LossDifference]],
    path: Path,
) -> None:
    """Three panels with a row per task: loss beside its null, difference of models, difference over the null.

    Args:
        scores: Scores of all tasks and sources in one scale; at most six sources.
        differences: For at most three labels, such as "distilled - base", the difference
            of every task.
        relative: The same after dividing by each model's null mean.
        path: PNG file to write, the SVG beside it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    tasks = list(dict.fromkeys(score.task for score in scores))
    sources = list(dict.fromkeys(score.source for score in scores))
    by_source = {name: [score for score in scores if score.source == name] for name in sources}

    def paint(figure: Any) -> None:
        left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=(1.3, 1, 1))
        for at, (source, entries) in enumerate(by_source.items()):
            rows = _rows(len(tasks), at, len(sources))
            _intervals(left, rows, [(s.loss, s.low, s.high) for s in entries], LINES[at], label=source)
            nulls = [s.null_mean for s in entries]
            label = "with shuffled outputs" if at == len(sources) - 1 else None
            left.scatter(nulls, rows, marker="|", s=70, color=INK, linewidths=1.4, label=label)
        left.set_xlim(left=0)
        left.set(xlabel="loss", title="parallelogram loss")
        for axes, named, title in (
            (middle, differences, "difference of losses"),
            (right, relative, "difference of loss / shuffled loss"),
        ):
            for at, (label, entries) in enumerate(named.items()):
                points = [(d.estimate, d.low, d.high) for d in entries]
                _intervals(axes, _rows(len(tasks), at, len(named)), points, LINES[at + 3], label=label)
            axes.axvline(0, color=GRAY, linewidth=0.8, linestyle=":")
            axes.set(title=title, xlabel="below 0: the first is better structured")
        for axes in (left, middle, right):
            axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17))
        left.set_yticks(range(len(tasks)), tasks)
        left.set_ylim(len(tasks) - 0.5, -0.5)

    draw(path, paint, size=(11.0, 2.2 + _ROW_INCHES * len(tasks)))


def _rows(n_tasks: int, at: int, n_kinds: int) -> list[float]:
    return [row + 0.22 * (at - (n_kinds - 1) / 2) for row in range(n_tasks)]


def _intervals(
    axes: Any,
    rows: Sequence[float],
    points: Sequence[tuple[float, float, float]],
    style: tuple[str, str, Any],
    *,
    label: str,
) -> None:
    color, marker, _ = style
    axes.hlines(rows, [p[1] for p in points], [p[2] for p in points], color=color, linewidth=1.2)
    axes.scatter([p[0] for p in points], rows, color=color, marker=marker, s=22, label=label, zorder=3)


@typed
def structure_curves(
    shares: Mapping[str, Sequence[float]], nearest: Mapping[str, Sequence[float]], path: Path
) -> None:
    """Two panels: variance by principal component, and how close the nearest other decoder vector is.

    Args:
        shares: For each source the cumulative share of variance after 1, 2, ... components.
        nearest: For each source, or baseline, evenly spaced quantiles of the nearest |cosine|.
        path: PNG file to write, the SVG beside it.

    Raises:
        ImportError: matplotlib is not installed.
    """

    def paint(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for (name, values), (color, marker, line) in zip(shares.items(), LINES, strict=False):
            components, every = range(1, len(values) + 1), max(1, len(values) // 8)
            left.plot(
                components, values, color=color, marker=marker, markevery=every, linestyle=line, label=name
            )
        left.set(xscale="log", ylim=(0, 1.02), xlabel="principal components")
        left.set(ylabel="share of variance", title="activations on held-out text")
        for (name, values), (color, marker, line) in zip(nearest.items(), LINES, strict=False):
            percents = [100 * at / (len(values) - 1) for at in range(len(values))]
            every = max(1, len(values) // 8)
            right.plot(
                values, percents, color=color, marker=marker, markevery=every, linestyle=line, label=name
            )
        right.set(xlim=(0, 1), xlabel="|cosine| with the nearest other decoder vector")
        right.set(ylabel="latents up to there (%)", title="decoder vectors of latents that fire")
        for axes in (left, right):
            axes.legend(frameon=False, fontsize=8)

    draw(path, paint, size=(9.0, 3.8))
