"""Linear decodability: can a latent be read from either source alone, on held-out sequences?"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.diffing.measures.moments import Moments, check_moments, normalized_weights
from crosscoders.sources import column_slices, compared_pair, source_index


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Decodability:
    """Held-out correlation between each latent and its linear readout from either source alone.

    Args:
        latents: Number of each latent in the crosscoder.
        pair: Names of the two sources.
        by_half: Correlation on either half of the sequences, fitted on the other [chosen 2 2]: source, half.
    """

    latents: Int[Tensor, " chosen"]
    pair: tuple[str, str]
    by_half: Float[Tensor, "chosen 2 2"]

    @property
    def correlation(self) -> Float[Tensor, "chosen 2"]:
        """Mean over the two halves; NaN where the latent does not vary in one of them."""
        return self.by_half.mean(dim=2)

    @property
    def weaker_ratio(self) -> Float[Tensor, " chosen"]:
        """Correlation of the weaker source over that of the stronger; NaN unless that is above zero."""
        weaker, stronger = self.correlation.sort(dim=1).values.unbind(dim=1)
        return torch.where(stronger > 0, weaker / stronger, torch.nan)


@typed
def decodability(
    moments: Moments,
    crosscoder: Crosscoder,
    *,
    pair: tuple[str, str] | None = None,
    ridge: float = 1e-3,
) -> Decodability:
    """Ridge readout of each latent from one source's activations, fitted on one half and scored on the other.

    On the sequences of the even blocks w_j = (Cov(x, x) + ridge * tr Cov(x, x)/d_model * I)^-1 Cov(x, f_j),
    on those of the odd ones corr(w_j . x, f_j) = w_j . Cov(x, f_j) / sqrt(w_j^T Cov(x, x) w_j Var f_j), and
    the other way round; in closed form from the moments, for sum f x = sum f e + sum f r + b_dec sum f. No
    common space is needed, so widths may differ.

    A latent of a shared direction can be read from both sources; one that only one source writes cannot be
    read from the other, unless that correlates with what it writes. In superposition all readouts carry the
    interference of other latents: compare the two sources, not a correlation with 1.

    Args:
        moments: From `collect_moments` with this crosscoder.
        crosscoder: The crosscoder.
        pair: Names of two sources; the first and the last by default.
        ridge: Penalty in units of the mean variance of a coordinate.

    Returns:
        The held-out correlations; NaN for a latent that does not vary in both halves.

    Raises:
        ValueError: Unknown sources, moments of another crosscoder, no rows in one half, or `ridge` not above
            zero.
    """
    check_moments(moments, crosscoder, where="decodability")
    compared = compared_pair(moments.sources, pair, where="decodability")
    if not ridge > 0:
        raise ValueError(f"decodability: ridge must be above zero, got {ridge}.")
    if any(int(moments.rows.n_rows[half::2].sum()) == 0 for half in (0, 1)):
        raise ValueError(
            "decodability: the sequences lie in even blocks only, or in odd ones; number them in turn."
        )
    _, bias = normalized_weights(crosscoder)
    by_source = []
    for source in compared:
        halves = [_covariances(moments, source.name, bias.cpu(), half=half) for half in (0, 1)]
        by_source.append(torch.stack([_held_out(halves[1 - h], halves[h], ridge) for h in (0, 1)], dim=1))
    return Decodability(
        latents=moments.latents,
        pair=(compared[0].name, compared[1].name),
        by_half=torch.stack(by_source, dim=1),
    )


def _covariances(moments: Moments, source: str, bias: Tensor, *, half: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cov(x, x) [d d], Cov(x, f) [d chosen] and Var f [chosen] over the even or odd blocks."""
    columns = column_slices(moments.sources)[source]
    n = moments.rows.n_rows[half::2].sum()
    sums, squares = (
        total[half::2].sum(dim=0)[moments.latents] for total in (moments.sum_latents, moments.sum_squares)
    )
    products = moments.with_error[half::2, :, columns].sum(dim=0)
    products += moments.with_reconstruction[half::2, :, columns].sum(dim=0)
    products += sums[:, None] * bias[columns]
    mean_x, mean_f = moments.rows.sums[half::2, columns].sum(dim=0) / n, sums / n
    of_rows = moments.rows.products[source_index(moments.sources, source)][half] / n
    return (
        of_rows - mean_x[:, None] * mean_x,
        (products / n - mean_f[:, None] * mean_x).T,
        squares / n - mean_f.square(),
    )


def _held_out(
    fitted: tuple[Tensor, Tensor, Tensor], scored: tuple[Tensor, Tensor, Tensor], ridge: float
) -> Tensor:
    covariance, cross, variance = fitted
    penalty = ridge * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=covariance.dtype)
    readout = torch.linalg.solve(covariance + penalty, cross)
    held_out, held_out_cross, held_out_variance = scored
    spread = (readout * (held_out @ readout)).sum(dim=0) * held_out_variance
    varies = (variance > 0) & (held_out_variance > 0)
    return torch.where(varies, (readout * held_out_cross).sum(dim=0) / spread.sqrt(), torch.nan)
