"""Figures of ablations: change of a target's logit against the size of the set, beside the controls."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crosscoders._typing import typed
from crosscoders.report.figures.style import GRAY, LINES, draw

Point = tuple[float, float, float, bool]  # mean, ends of its interval, whether of the set's size
_DODGE = 0.022  # shift between lines, as a share of a tick's value: error bars stay apart


@typed
def ablation_curves(
    panels: Mapping[str, Mapping[str, Mapping[str, Sequence[Point]]]],
    percents: Sequence[int | float],
    path: Path,
    *,
    ylabel: str = "change of the target's logit",
) -> None:
    """One column per category and one row per model, all on one scale; a line per kind of edit.

    Hollow points are controls that are not of the size of the edit that they are beside.

    Args:
        panels: For each category, for each source, for each kind of edit, one point per percentage; NaN
            where there is none.
        percents: Percentages of latents, the most frequent first.
        path: PNG file to write, the SVG beside it.
        ylabel: What is shown.

    Raises:
        ImportError: matplotlib is not installed.
    """
    categories = list(panels)
    sources = list(panels[categories[0]])
    kinds = list(dict.fromkeys(kind for rows in panels.values() for lines in rows.values() for kind in lines))
    styles = dict(zip(kinds, LINES, strict=False))

    def paint(figure: Any) -> None:
        grid = figure.subplots(len(sources), len(categories), squeeze=False, sharex=True, sharey=True)
        handles: dict[str, Any] = {}
        for row, source in zip(grid, sources, strict=True):
            for axes, category in zip(row, categories, strict=True):
                _panel(axes, panels[category][source], percents, styles, handles)
            row[0].set_ylabel(f"{source}\n{ylabel}", fontsize=8)
        for axes, category in zip(grid[0], categories, strict=True):
            axes.set_title(category, fontsize=10)
        for axes in grid[-1]:
            axes.set_xlabel("most frequent latents (top k %)", fontsize=8)
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower center",
            ncols=3,
            frameon=False,
            fontsize=8,
        )

    draw(path, paint, size=(1.2 + 2.7 * len(categories), 0.9 + 2.4 * len(sources)))


def _panel(
    axes: Any,
    lines: Mapping[str, Sequence[Point]],
    percents: Sequence[int | float],
    styles: Mapping[str, tuple[str, str, Any]],
    handles: dict[str, Any],
) -> None:
    kinds = list(styles)
    for kind, points in lines.items():
        color, marker, line = styles[kind]
        shift = 1 + _DODGE * (2 * kinds.index(kind) - len(kinds) + 1)
        means, lows, highs, sized = (list(values) for values in zip(*points, strict=True))
        at = [percent * shift for percent in percents]
        handles[kind] = axes.errorbar(
            at,
            means,
            yerr=[
                [mean - low for mean, low in zip(means, lows, strict=True)],
                [high - mean for mean, high in zip(means, highs, strict=True)],
            ],
            color=color,
            marker=marker,
            markersize=4,
            linestyle=line,
            linewidth=1.2,
            elinewidth=0.8,
            label=kind,
        )
        apart = [(x, mean) for x, mean, is_sized in zip(at, means, sized, strict=True) if not is_sized]
        if apart:
            hollow = {"color": color, "marker": marker, "markersize": 4, "linestyle": "none", "zorder": 5}
            (unequal,) = axes.plot(*zip(*apart, strict=True), markerfacecolor="white", **hollow)
            handles.setdefault("hollow: not of the size of the ablation", unequal)
    axes.set_xscale("log")
    axes.set_xticks(list(percents), [f"{percent:g}" for percent in percents])
    axes.set_xticks([], minor=True)
    axes.tick_params(labelsize=8)
    axes.axhline(0, color=GRAY, linewidth=0.8, linestyle=":")
