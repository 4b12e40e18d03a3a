"""Figures of steering sweeps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crosscoders._typing import typed
from crosscoders.report.figures.style import GRAY, LINES, draw


@typed
def steering_curves(
    curves: Mapping[str, Mapping[str, Sequence[float]]], strengths: Sequence[float], path: Path
) -> None:
    """One panel per measure, one line per direction.

    Args:
        curves: For each measure, for each direction, one value per strength.
        strengths: Strengths in units of the mean residual norm.
        path: PNG file to write, the SVG beside it.

    Raises:
        ImportError: matplotlib is not installed.
    """

    def paint(figure: Any) -> None:
        for axes, (measure, lines) in zip(
            figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
        ):
            for (direction, values), (color, marker, line) in zip(lines.items(), LINES, strict=False):
                axes.plot(strengths, values, color=color, marker=marker, linestyle=line, label=direction)
            axes.set(title=measure, xlabel="strength (x mean residual norm)")
            axes.set_ylim(bottom=0)
            axes.axvline(0, color=GRAY, linewidth=0.8, linestyle=":")
        figure.axes[0].legend(frameon=False, fontsize=8)

    draw(path, paint, size=(3.6 * len(curves), 3.6))
