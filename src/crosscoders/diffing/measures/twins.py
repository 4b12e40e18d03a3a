"""Twins: for each latent, the one that fires with it and those that write its direction."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.diffing.measures.moments import Moments, check_moments, normalized_weights
from crosscoders.sources import column_slices

_LATENTS_AT_ONCE = 1024  # bounds the matrix of cosines with all latents


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Twins:
    """The nearest other latent of each latent; -1 and NaN where no other is a candidate.

    Args:
        latents: Number of each latent in the crosscoder.
        correlation: Highest activation correlation with another latent.
        correlated: Number of that latent.
        decoder_cosine: Cosine of largest magnitude with another latent's decoder vector, by source.
        decoder_twin: Numbers of those latents.
    """

    latents: Int[Tensor, " chosen"]
    correlation: Float[Tensor, " chosen"]
    correlated: Int[Tensor, " chosen"]
    decoder_cosine: Float[Tensor, "chosen source"]
    decoder_twin: Int[Tensor, "chosen source"]


@typed
def activation_correlation(moments: Moments) -> Float[Tensor, "chosen latent"]:
    """Pearson correlation over all rows of each chosen latent with every latent.

    r_jl = (sum f_j f_l / n - m_j m_l) / (s_j s_l); NaN for a latent that never fires or never varies.

    Args:
        moments: From `collect_moments`.
    """
    n = moments.n_rows
    mean, square = moments.sum_latents.sum(dim=0) / n, moments.sum_squares.sum(dim=0) / n
    variance = square - mean.square()
    deviation = torch.where(moments.is_live & (variance > 0), variance, torch.nan).sqrt()
    own = moments.latents
    covariance = moments.coactivation / n - mean[own, None] * mean
    return covariance / (deviation[own, None] * deviation)


@typed
def twins(
    moments: Moments, crosscoder: Crosscoder, *, candidates: Bool[Tensor, " latent"] | None = None
) -> Twins:
    """Find each latent's twins among the other live latents.

    A pair that fires together, one for each source, is one shared feature split in two (latent decoupling;
    Minder, Dumas et al. 2025); two latents of nearly one direction split a feature by context.

    Args:
        moments: From `collect_moments` with this crosscoder.
        crosscoder: The crosscoder.
        candidates: Latents that may be a twin, such as those of the other source; None for all. Latents
            that never fired are none in any case.

    Returns:
        Correlations, cosines and the numbers of the twins.

    Raises:
        ValueError: Moments of another crosscoder.
    """
    check_moments(moments, crosscoder, where="twins")
    allowed = moments.is_live if candidates is None else moments.is_live & candidates.cpu()
    correlation, correlated = best_other(
        activation_correlation(moments), latents=moments.latents, allowed=allowed
    )
    W_dec, _ = normalized_weights(crosscoder)
    cosines, numbers = [], []
    for columns in column_slices(moments.sources).values():
        unit = torch.nn.functional.normalize(W_dec[:, columns].cpu(), dim=1, eps=0.0)
        found = [
            best_other(unit[own] @ unit.T, latents=own, allowed=allowed, by_magnitude=True)
            for own in moments.latents.split(_LATENTS_AT_ONCE)
        ]
        cosines.append(torch.cat([cosine for cosine, _ in found]))
        numbers.append(torch.cat([number for _, number in found]))
    return Twins(
        latents=moments.latents,
        correlation=correlation,
        correlated=correlated,
        decoder_cosine=torch.stack(cosines, dim=1),
        decoder_twin=torch.stack(numbers, dim=1),
    )


@typed
def best_other(
    scores: Float[Tensor, "chosen latent"],
    *,
    latents: Int[Tensor, " chosen"],
    allowed: Bool[Tensor, " latent"],
    by_magnitude: bool = False,
) -> tuple[Float[Tensor, " chosen"], Int[Tensor, " chosen"]]:
    """Best score of each row with an allowed latent other than its own, and that latent's number.

    Args:
        scores: One row per chosen latent; undefined ones (NaN) are never the best.
        latents: Number of each row's own latent.
        allowed: Latents that may be found.
        by_magnitude: Whether the largest magnitude is the best.

    Returns:
        Score and number; NaN and -1 where there is none.
    """
    excluded = scores.isnan() | ~allowed
    excluded[torch.arange(len(latents)), latents] = True
    key = torch.where(excluded, -torch.inf, scores.abs() if by_magnitude else scores)
    best, number = key.max(dim=1)
    none = best == -torch.inf
    value = scores.gather(1, number[:, None])[:, 0]
    return torch.where(none, torch.nan, value), torch.where(none, -1, number)
