"""Figures of a run, drawn with matplotlib (the `plot` extra) straight to files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from crosscoders._io import atomic_write
from crosscoders._typing import typed
from crosscoders.latents import LatentTable

# Okabe and Ito's blue and orange, which color-blind readers tell apart, beside two grays.
_INK, _BLUE, _ORANGE, _GRAY = "#222222", "#0072B2", "#D55E00", "#7F7F7F"


def _draw(path: Path, paint: Callable[[Any], None], *, size: tuple[float, float] = (6.4, 4.0)) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as err:
        raise ImportError("figures need matplotlib: pip install 'crosscoders[plot]'.") from err
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    paint(figure)
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png"))


def _source_names(table: LatentTable) -> tuple[str, ...]:
    return tuple(name.removeprefix("norm_l2/") for name in table.columns if name.startswith("norm_l2/"))


@typed
def nrn_histogram(table: LatentTable, path: Path) -> None:
    """Histogram of NRN (L2 and L1 norms, normalized space) over the latents that fire, on a log scale.

    NRN is `crosscoders.metrics.normalized_decoder_ratio`.

    Args:
        table: A table of two sources.
        path: PNG file to write.

    Raises:
        ImportError: matplotlib is not installed.
        KeyError: The table lacks NRN, as one of other than two sources does.
    """
    fired = table["frequency"] > 0
    first, second = _source_names(table)

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        edges = torch.linspace(0, 1, 41).tolist()
        axes.hist(table["nrn_l2"][fired].tolist(), bins=edges, color=_BLUE, alpha=0.85, label="L2 norms")
        axes.hist(
            table["nrn_l1"][fired].tolist(),
            bins=edges,
            histtype="step",
            color=_ORANGE,
            linewidth=1.4,
            label="L1 norms",
        )
        axes.set(
            yscale="log",
            xlim=(0, 1),
            ylabel="latents",
            xlabel=f"NRN (0 = only {first}, 1 = only {second})",
        )
        axes.set_title(f"Normalized relative norm of {int(fired.sum())} latents")
        axes.axvline(0.5, color=_GRAY, linewidth=0.8, linestyle=":")
        axes.legend(frameon=False)

    _draw(path, paint)


@typed
def cosine_against_nrn(table: LatentTable, path: Path) -> None:
    """Decoder cosine against NRN, one dot per latent that fires; larger dots fire more often.

    Args:
        table: A table of two sources of equal width.
        path: PNG file to write.

    Raises:
        ImportError: matplotlib is not installed.
        KeyError: The table lacks the cosine, as one of other sources does.
    """
    fired = table["frequency"] > 0
    first, second = _source_names(table)

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        sizes = (4 + 60 * table["frequency"][fired].clamp(max=0.5)).tolist()
        axes.scatter(
            table["nrn_l2"][fired].tolist(),
            table["decoder_cosine"][fired].tolist(),
            s=sizes,
            color=_BLUE,
            alpha=0.45,
            linewidths=0,
        )
        axes.set(xlim=(0, 1), ylim=(-1.05, 1.05), xlabel=f"NRN (0 = only {first}, 1 = only {second})")
        axes.set_ylabel("cosine of the two decoder vectors")
        axes.set_title("Same direction, same size? (area: how often it fires)")
        axes.axhline(0, color=_GRAY, linewidth=0.8, linestyle=":")
        axes.axvline(0.5, color=_GRAY, linewidth=0.8, linestyle=":")

    _draw(path, paint)


@typed
def steering_curves(
    curves: Mapping[str, Mapping[str, Sequence[float]]], strengths: Sequence[float], path: Path
) -> None:
    """One panel per measure, one line per direction.

    Args:
        curves: For each measure, for each direction, one value per strength.
        strengths: Strengths in units of the mean residual norm.
        path: PNG file to write.

    Raises:
        ImportError: matplotlib is not installed.
    """
    styles = [(_BLUE, "o", "-"), (_ORANGE, "s", "--"), (_INK, "^", ":"), (_GRAY, "D", "-.")]

    def paint(figure: Any) -> None:
        for axes, (measure, lines) in zip(
            figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
        ):
            for (direction, values), (color, marker, line) in zip(lines.items(), styles, strict=False):
                axes.plot(strengths, values, color=color, marker=marker, linestyle=line, label=direction)
            axes.set(title=measure, xlabel="strength (x mean residual norm)")
            axes.set_ylim(bottom=0)
            axes.axvline(0, color=_GRAY, linewidth=0.8, linestyle=":")
        figure.axes[0].legend(frameon=False, fontsize=8)

    _draw(path, paint, size=(3.6 * len(curves), 3.6))
