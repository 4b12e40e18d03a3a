"""Figures of steering sweeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosscoders._typing import typed
from crosscoders.report.figures.style import GRAY, LINES, draw

_DODGE = 0.008  # shift between lines, as a share of the strengths' range: error bars stay apart
_N_COLUMNS = 3
_XLABEL = "strength (x mean residual norm)"


@dataclass(frozen=True, kw_only=True)
class SteeringCurve:
    """One direction's figures over the strengths.

    Args:
        means: One per strength; NaN where there is none.
        lows: Lower ends of their intervals.
        highs: Upper ends.
        is_collapsed: Where the answers have collapsed; drawn hollow.
    """

    means: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]
    is_collapsed: Sequence[bool]


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
            axes.set(title=measure, xlabel=_XLABEL)
            axes.set_ylim(bottom=0)
            axes.axvline(0, color=GRAY, linewidth=0.8, linestyle=":")
        figure.axes[0].legend(frameon=False, fontsize=8)

    draw(path, paint, size=(3.6 * len(curves), 3.6))


@typed
def steering_panels(
    panels: Mapping[str, Mapping[str, SteeringCurve]],
    strengths: Sequence[float],
    path: Path,
    *,
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    band_label: str = "random directions (range)",
    title: str = "",
) -> None:
    """One panel per measure: a line with error bars per direction over a band of random directions.

    Args:
        panels: For each measure, for each direction, its curve; at most six directions.
        strengths: Strengths, ascending.
        path: PNG file to write, the SVG beside it.
        bands: For each measure the lowest and the highest figure of the random directions at each strength.
        band_label: What the band is.
        title: Title of the whole figure.

    Raises:
        ValueError: More directions than line styles.
        ImportError: matplotlib is not installed.
    """
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    if len(names) > len(LINES):
        raise ValueError(f"steering_panels: {len(names)} directions, but only {len(LINES)} line styles.")
    styles = dict(zip(names, LINES, strict=False))
    n_rows = -(-len(panels) // _N_COLUMNS)

    def paint(figure: Any) -> None:
        grid = figure.subplots(n_rows, _N_COLUMNS, squeeze=False).flatten()
        handles: dict[str, Any] = {}
        for axes, (measure, curves) in zip(grid, panels.items(), strict=False):
            if measure in bands:
                low, high = bands[measure]
                handles[band_label] = axes.fill_between(
                    strengths, low, high, color=GRAY, alpha=0.3, linewidth=0
                )
            for name, curve in curves.items():
                shift = names.index(name) - (len(names) - 1) / 2
                handles[name] = _line(axes, curve, strengths, styles[name], shift=shift)
            if all(low >= 0 for curve in curves.values() for low in curve.lows):
                axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])  # from 0 on, with room for markers there
            axes.set_title(measure, fontsize=10)
            axes.axvline(0, color=GRAY, linewidth=0.8, linestyle=":")
            axes.tick_params(labelsize=8)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for axes in grid[: len(panels)][-_N_COLUMNS:]:
            axes.set_xlabel(_XLABEL, fontsize=8)
        handles["hollow: answers collapsed"] = grid[0].plot(
            [], [], color=GRAY, marker="o", linestyle="", markerfacecolor="white"
        )[0]
        if title:
            figure.suptitle(title, fontsize=11)
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower center",
            ncols=3,
            frameon=False,
            fontsize=8,
        )

    draw(path, paint, size=(3.5 * _N_COLUMNS, 1.2 + 2.6 * n_rows))


def _line(
    axes: Any,
    curve: SteeringCurve,
    strengths: Sequence[float],
    style: tuple[str, str, Any],
    *,
    shift: float,
) -> Any:
    """A curve with error bars, its collapsed points hollow."""
    color, marker, line = style
    step = shift * _DODGE * (max(strengths) - min(strengths))
    x = [strength + step for strength in strengths]
    below = [mean - low for mean, low in zip(curve.means, curve.lows, strict=True)]
    above = [high - mean for mean, high in zip(curve.means, curve.highs, strict=True)]
    handle = axes.errorbar(
        x,
        list(curve.means),
        yerr=[below, above],
        color=color,
        marker=marker,
        markersize=4,
        linestyle=line,
        linewidth=1.2,
        elinewidth=0.8,
    )
    hollow = [point for point in zip(x, curve.means, curve.is_collapsed, strict=True) if point[2]]
    axes.plot(
        [point[0] for point in hollow],
        [point[1] for point in hollow],
        color=color,
        marker=marker,
        markersize=5,
        markerfacecolor="white",
        linestyle="",
        zorder=5,
    )
    return handle
