"""Figures of the annotation: what the latents at both ends of the norm screen go with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crosscoders._typing import typed
from crosscoders.reasoning import CategoryExcess
from crosscoders.report.figures.style import BLUE, GRAY, HATCHES, INK, draw


@typed
def category_counts(panels: Mapping[str, Sequence[CategoryExcess]], path: Path) -> None:
    """One panel per end and annotator: latents of each category beside random ones of the same frequency.

    Args:
        panels: Counts by the panel's title.
        path: PNG file to write, the SVG beside it.

    Raises:
        ImportError: matplotlib is not installed.
    """

    def paint(figure: Any) -> None:
        n_columns = min(2, len(panels))
        n_rows = -(-len(panels) // n_columns)
        is_same = len({tuple(c.category for c in counts) for counts in panels.values()}) == 1
        grid = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True, sharex=is_same)
        for axes, (title, counts) in zip(grid.flat, panels.items()):
            _paint_panel(axes, title, counts)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel("latents")
        grid[0, 0].legend(frameon=False, fontsize=8)

    draw(path, paint, size=(8.4, 3.4 * -(-len(panels) // 2)))


def _paint_panel(axes: Any, title: str, counts: Sequence[CategoryExcess]) -> None:
    at = list(range(len(counts)))
    axes.bar(
        [x - 0.2 for x in at],
        [c.found for c in counts],
        width=0.38,
        color=BLUE,
        edgecolor=INK,
        linewidth=0.6,
        label="found",
    )
    axes.bar(
        [x + 0.2 for x in at],
        [c.expected for c in counts],
        width=0.38,
        color="white",
        edgecolor=GRAY,
        hatch=HATCHES[1],
        linewidth=0.6,
        label="random latents of the same frequency, 95%",
    )
    axes.errorbar(
        [x + 0.2 for x in at],
        [c.expected for c in counts],
        yerr=[[c.expected - c.low for c in counts], [c.high - c.expected for c in counts]],
        fmt="none",
        ecolor=INK,
        capsize=3,
        linewidth=1,
    )
    for x, c in zip(at, counts):
        if c.verdict != "as many":
            place = {"xytext": (0, 2), "textcoords": "offset points"}
            axes.annotate(c.verdict, (x - 0.2, c.found), ha="center", fontsize=8, **place)
    if all(c.found == c.high == 0 for c in counts):
        axes.text(0.5, 0.5, "none, as expected", ha="center", va="center", transform=axes.transAxes)
    axes.set_title(title, fontsize=9)
    axes.set_xticks(at, [c.category for c in counts], rotation=20, ha="right", fontsize=8)
    axes.margins(y=0.15)
