"""The part of the geometry experiment that looks at activations and decoders instead of words."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.geometry import (
    ActivationCovariance,
    cosine_structure_correlation,
    effective_dimension,
    leading_axes,
    linear_cka,
    nearest_cosines,
    spectrum,
    subspace_overlap,
)
from crosscoders.harvest import ModelSources
from crosscoders.pipeline.config import DataConfig
from crosscoders.pipeline.corpus import Corpus

_PERCENTS = torch.linspace(0, 1, 101, dtype=torch.float64)
RANDOM = "random directions"


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Structure of activations and decoders.

    Args:
        rows: One row per measure and source, or pair of sources: "measure", "of", "value", "chance" (what
            random subspaces or directions give; NaN where zero structure has no number).
        shares: Cumulative share of variance by principal component, by source.
        nearest: Percentiles of the nearest |cosine| among decoder vectors, by source, and for random ones.
    """

    rows: tuple[dict[str, Any], ...]
    shares: Mapping[str, tuple[float, ...]]
    nearest: Mapping[str, tuple[float, ...]]

    @typed
    def value(self, measure: str, of: str) -> float:
        """One value.

        Args:
            measure: Name of the measure.
            of: Source, or "a, b" for a pair.

        Raises:
            KeyError: It was not measured.
        """
        for row in self.rows:
            if (row["measure"], row["of"]) == (measure, of):
                return float(row["value"])
        raise KeyError(f"no {measure!r} of {of!r} was measured.")


@typed
def held_out_covariance(
    sources: ModelSources, corpus: Corpus, data: DataConfig, *, n_tokens: int
) -> ActivationCovariance:
    """Covariance of held-out activations over evenly spaced rows of text.

    Args:
        sources: Models and hooks.
        corpus: The text.
        data: Which positions count.
        n_tokens: About how many tokens to read.

    Returns:
        The covariance of all sources' columns.
    """
    n_rows, length = corpus.held_out.shape
    wanted = min(n_rows, max(1, -(-n_tokens // length)))
    at = torch.linspace(0, n_rows - 1, wanted).round().long()
    part = dataclasses.replace(corpus, held_out=corpus.held_out[at], origin=corpus.origin[at], answers={})
    covariance = ActivationCovariance(sources.sources)
    for batch in part.held_out_batches(sources, data):
        covariance.update(batch.rows)
    return covariance


@typed
def structure_of(
    covariance: ActivationCovariance,
    crosscoder: Crosscoder,
    *,
    fired: Bool[Tensor, " latent"],
    n_axes: int,
    generator: torch.Generator,
) -> Structure:
    """All structure measures: effective dimension, subspace overlap, linear CKA, decoder cosines.

    Args:
        covariance: Covariance of held-out activations.
        crosscoder: Its decoders are compared, in the sources that it has.
        fired: Latents that fire; the others' decoder vectors say nothing.
        n_axes: Leading principal axes whose subspaces are compared.
        generator: Draws the random directions.

    Returns:
        Values, and the curves of the figure.
    """
    blocks = {s.name: covariance.block(s.name, s.name) for s in covariance.sources}
    spectra = {name: spectrum(block) for name, block in blocks.items()}
    decoders = {s.name: crosscoder.decoder(s.name).detach()[fired] for s in crosscoder.sources}
    rows = [
        _row("effective_dimension", name, effective_dimension(variances), chance=float(len(variances)))
        for name, variances in spectra.items()
    ]
    rows += _pair_rows(covariance, blocks, n_axes=n_axes)
    random = torch.randn(next(iter(decoders.values())).shape, generator=generator)
    nearest = {name: nearest_cosines(vectors) for name, vectors in {**decoders, RANDOM: random}.items()}
    rows += [
        _row("nearest_cosine_median", name, _median(values), chance=_median(nearest[RANDOM]))
        for name, values in nearest.items()
        if name != RANDOM
    ]
    rows += [
        _row("cosine_structure", f"{a}, {b}", cosine_structure_correlation(first, second), chance=0.0)
        for (a, first), (b, second) in combinations(decoders.items(), 2)
    ]
    return Structure(
        rows=tuple(rows),
        shares={name: tuple((v.cumsum(0) / v.sum()).tolist()) for name, v in spectra.items()},
        nearest={
            name: tuple(torch.nanquantile(values.cpu(), _PERCENTS).tolist())
            for name, values in nearest.items()
        },
    )


def _pair_rows(
    covariance: ActivationCovariance, blocks: Mapping[str, Float[Tensor, "_d _d"]], *, n_axes: int
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for a, b in combinations(blocks, 2):
        cka = linear_cka(blocks[a], blocks[b], cross=covariance.block(a, b))
        rows.append(_row("linear_cka", f"{a}, {b}", cka, chance=float("nan")))
        d_model = len(blocks[a])
        if len(blocks[b]) == d_model:  # subspaces of unequal spaces do not overlap
            k = min(n_axes, d_model)
            axes = [leading_axes(blocks[name], n_components=k) for name in (a, b)]
            rows.append(_row(f"overlap_top{k}", f"{a}, {b}", subspace_overlap(*axes), chance=k / d_model))
    return rows


def _row(measure: str, of: str, value: float, *, chance: float) -> dict[str, Any]:
    return {"measure": measure, "of": of, "value": value, "chance": chance}


def _median(values: Tensor) -> float:
    return float(values.nanmedian())
