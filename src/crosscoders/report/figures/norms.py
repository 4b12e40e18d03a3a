"""Figures of decoder norms: who owns which latent."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.latents import LatentTable
from crosscoders.report.figures.style import BLUE, GRAY, ORANGE, draw


def _source_names(table: LatentTable) -> tuple[str, ...]:
    return tuple(name.removeprefix("norm_l2/") for name in table.columns if name.startswith("norm_l2/"))


@typed
def nrn_histogram(table: LatentTable, path: Path) -> None:
    """Histogram of NRN (L2 and L1 norms, normalized space) over the latents that fire, on a log scale.

    NRN is `crosscoders.metrics.normalized_decoder_ratio`.

    Args:
        table: A table of two sources.
        path: PNG file to write, the SVG beside it.

    Raises:
        ImportError: matplotlib is not installed.
        KeyError: The table lacks NRN, as one of other than two sources does.
    """
    fired = table["frequency"] > 0
    first, second = _source_names(table)

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        edges = torch.linspace(0, 1, 41).tolist()
        axes.hist(table["nrn_l2"][fired].tolist(), bins=edges, color=BLUE, alpha=0.85, label="L2 norms")
        axes.hist(
            table["nrn_l1"][fired].tolist(),
            bins=edges,
            histtype="step",
            color=ORANGE,
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
        axes.axvline(0.5, color=GRAY, linewidth=0.8, linestyle=":")
        axes.legend(frameon=False)

    draw(path, paint)


@typed
def nrn_conventions(
    values: Mapping[str, Float[Tensor, " _fired"]], path: Path, *, names: tuple[str, str], n_bins: int = 40
) -> None:
    """One histogram of NRN per convention, under one another on one axis.

    Args:
        values: NRN of the latents that fire, by the convention's label.
        path: PNG file to write, the SVG beside it.
        names: First and second source.
        n_bins: Bins between 0 and 1.

    Raises:
        ImportError: matplotlib is not installed.
    """
    edges = torch.linspace(0, 1, n_bins + 1).tolist()

    def paint(figure: Any) -> None:
        panels = figure.subplots(len(values), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, (label, nrn) in zip(panels, values.items(), strict=True):
            axes.hist(nrn.tolist(), bins=edges, color=BLUE)
            axes.axvline(0.5, color=GRAY, linewidth=0.8, linestyle=":")
            mean = float(nrn.double().mean())
            axes.axvline(mean, color=ORANGE, linewidth=1.2, linestyle="--")
            axes.set_title(f"{label}: mean {mean:.3f} (dashed)", fontsize=9, loc="left")
            axes.set(yscale="log", xlim=(0, 1), ylabel="latents")
        panels[-1].set_xlabel(f"NRN (0 = only {names[0]}, 1 = only {names[1]})")

    draw(path, paint, size=(6.4, 1.7 * len(values)))


@typed
def cosine_against_nrn(table: LatentTable, path: Path) -> None:
    """Decoder cosine against NRN, one dot per latent that fires; larger dots fire more often.

    Args:
        table: A table of two sources of equal width.
        path: PNG file to write, the SVG beside it.

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
            color=BLUE,
            alpha=0.45,
            linewidths=0,
        )
        axes.set(xlim=(0, 1), ylim=(-1.05, 1.05), xlabel=f"NRN (0 = only {first}, 1 = only {second})")
        axes.set_ylabel("cosine of the two decoder vectors")
        axes.set_title("Same direction, same size? (area: how often it fires)")
        axes.axhline(0, color=GRAY, linewidth=0.8, linestyle=":")
        axes.axvline(0.5, color=GRAY, linewidth=0.8, linestyle=":")

    draw(path, paint)
