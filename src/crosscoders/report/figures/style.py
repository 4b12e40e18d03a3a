"""How every figure looks, and how it gets to disk: PNG to look at, SVG to print, drawn with matplotlib."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from crosscoders._io import atomic_write

# Okabe and Ito's palette, which color-blind readers tell apart. Color never stands alone: lines also differ
# in marker and dash, bars in hatch.
INK, BLUE, ORANGE, GRAY = "#222222", "#0072B2", "#D55E00", "#7F7F7F"
GREEN, PURPLE, SKY = "#009E73", "#CC79A7", "#56B4E9"
# (color, marker, line style) of the first, second, ... line of a panel.
LINES: tuple[tuple[str, str, Any], ...] = (
    (BLUE, "o", "-"),
    (ORANGE, "s", "--"),
    (INK, "^", ":"),
    (GREEN, "D", "-."),
    (PURPLE, "v", (0, (5, 1, 1, 1, 1, 1))),
    (GRAY, "x", (0, (1, 2))),
)
HATCHES: tuple[str, ...] = ("", "///", "...", "xxx", "\\\\\\", "++")


def draw(path: Path, paint: Callable[[Any], None], *, size: tuple[float, float] = (6.4, 4.0)) -> None:
    """Paint a figure and write it as PNG and SVG; equal figures give equal bytes.

    Args:
        path: File to write, with or without the suffix .png; the SVG lies beside it.
        paint: Gets the empty figure.
        size: Width and height in inches.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as err:
        raise ImportError("figures need matplotlib: pip install 'crosscoders[plot]'.") from err
    with matplotlib.rc_context({"svg.hashsalt": "crosscoders", "svg.fonttype": "none"}):
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure)
        atomic_write(path.with_suffix(".png"), lambda to: figure.savefig(to, format="png"))
        atomic_write(
            path.with_suffix(".svg"), lambda to: figure.savefig(to, format="svg", metadata={"Date": None})
        )
