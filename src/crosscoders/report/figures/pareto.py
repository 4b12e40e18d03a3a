"""The figure of a sweep: explained variance against sparsity, with the front that no member beats."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosscoders._typing import typed
from crosscoders.report.figures.style import GRAY, LINES, draw

_LOG_FROM = 4.0  # ratio of the largest to the smallest L0 above which the axis is logarithmic
_TICKS = ((1, 2, 5), (1, 2, 3, 4, 6, 8))  # of each decade of a logarithmic axis: the first that gives three
# Where a label may stand beside its point: offset in points, and which of its sides is there.
_PLACES = (
    ((6, -4), "left", "top"),
    ((-6, 4), "right", "bottom"),
    ((6, 4), "left", "bottom"),
    ((-6, -4), "right", "top"),
)


@dataclass(frozen=True, kw_only=True)
class ParetoPoint:
    """One crosscoder of one panel.

    Args:
        l0: Mean number of latents that fire on a token.
        explained_variance: On held-out text.
        is_on_front: Whether no other point has as much explained variance at a lower L0; drawn filled.
        group: Points of one group share color and marker; empty for no groups.
        label: Written beside a point on the front where there is room.
    """

    l0: float
    explained_variance: float
    is_on_front: bool
    group: str = ""
    label: str = ""


@typed
def pareto_figure(panels: Mapping[str, Sequence[ParetoPoint]], path: Path, *, title: str = "") -> None:
    """One panel per measure: explained variance over L0, the Pareto front as a staircase under its points.

    Args:
        panels: Points by the name of what is explained; at most six groups.
        path: PNG file to write, the SVG beside it.
        title: Title of the whole figure.

    Raises:
        ValueError: No points, or more groups than markers.
        ImportError: matplotlib is not installed.
    """
    groups = list(dict.fromkeys(point.group for points in panels.values() for point in points))
    if not groups or len(groups) > len(LINES):
        raise ValueError(f"pareto_figure: expected 1 to {len(LINES)} groups of points, got {len(groups)}.")
    styles = dict(zip(groups, LINES, strict=False))

    def paint(figure: Any) -> None:
        row = figure.subplots(1, len(panels), squeeze=False, sharex=True)[0]
        handles: dict[str, Any] = {}
        for axes, (name, points) in zip(row, panels.items(), strict=True):
            handles |= _panel(axes, points, styles)
            axes.set_title(name, fontsize=10)
            axes.set_xlabel("L0 (latents that fire per token)", fontsize=8)
        row[0].set_ylabel("explained variance, held out", fontsize=8)
        if title:
            figure.suptitle(title, fontsize=11)
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower center",
            ncols=4,
            frameon=False,
            fontsize=8,
        )
        figure.draw_without_rendering()  # settles where everything stands, so that labels can keep apart
        figure.set_layout_engine("none")
        for axes, points in zip(row, panels.values(), strict=True):
            _label_front(axes, points)

    draw(path, paint, size=(0.6 + 3.5 * len(panels), 3.9))


def _panel(
    axes: Any, points: Sequence[ParetoPoint], styles: Mapping[str, tuple[str, str, Any]]
) -> dict[str, Any]:
    """Draw one panel; gives what its legend shows."""
    front = sorted((p for p in points if p.is_on_front), key=lambda p: p.l0)
    costs = [point.l0 for point in points]
    if min(costs) > 0 and max(costs) / min(costs) > _LOG_FROM:
        axes.set_xscale("log")
        axes.minorticks_off()
        ticks = _ticks(0.95 * min(costs), 1.05 * max(costs))
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.grid(visible=True, color=GRAY, alpha=0.18, linewidth=0.6)
    axes.margins(x=0.14, y=0.12)
    handles: dict[str, Any] = {}
    line = axes.step(
        [p.l0 for p in front],
        [p.explained_variance for p in front],
        where="post",
        color=GRAY,
        linewidth=1.1,
        zorder=1,
    )
    for group, (color, marker, _) in styles.items():
        own = [point for point in points if point.group == group]
        for is_filled in (False, True):
            drawn = [point for point in own if point.is_on_front == is_filled]
            axes.plot(
                [p.l0 for p in drawn],
                [p.explained_variance for p in drawn],
                color=color,
                marker=marker,
                markersize=6 if is_filled else 5,
                markerfacecolor=color if is_filled else "white",
                linestyle="",
                zorder=3 if is_filled else 2,
            )
        if group:
            handles[group] = axes.plot([], [], color=color, marker=marker, linestyle="")[0]
    handles["front (filled): none has as much at no more L0"] = line[0]
    axes.tick_params(labelsize=8)
    return handles


def _ticks(low: float, high: float) -> list[float]:
    """Plain numbers between two bounds, for a logarithmic axis."""
    found: list[float] = []
    for numbers in _TICKS:
        found = [m * 10.0**e for e in range(-2, 6) for m in numbers if low <= m * 10.0**e <= high]
        if len(found) >= 3:
            break
    return found


def _label_front(axes: Any, points: Sequence[ParetoPoint]) -> None:
    """Write the labels of the front, each where it covers no point and no other label, or not at all."""
    at = [axes.transData.transform((point.l0, point.explained_variance)).tolist() for point in points]
    size = 4.0 * axes.figure.dpi / 72  # half a marker, in pixels
    taken = [(x - size, y - size, x + size, y + size) for x, y in at]
    frame = axes.get_window_extent()
    front = sorted((point for point in points if point.is_on_front), key=lambda point: point.l0)
    for point in front:
        for offset, ha, va in _PLACES:
            text = axes.annotate(
                point.label,
                (point.l0, point.explained_variance),
                xytext=offset,
                textcoords="offset points",
                ha=ha,
                va=va,
                fontsize=6.5,
                in_layout=False,
            )
            left, bottom, right, top = (float(edge) for edge in text.get_window_extent().extents)
            is_inside = frame.x0 < left and right < frame.x1 and frame.y0 < bottom and top < frame.y1
            if is_inside and not any(_overlap((left, bottom, right, top), other) for other in taken):
                taken.append((left, bottom, right, top))
                break
            text.remove()


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two boxes (left, bottom, right, top) share a point."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
