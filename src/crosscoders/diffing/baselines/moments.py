"""Mean and covariance of the difference of two sources, streamed: what its baselines are made of."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.diffing.batches import MeasureBatch
from crosscoders.sources import Source, check_activations, column_slices, compared_pair


@dataclass(frozen=True, kw_only=True, eq=False)
class DifferenceMoments:
    """Moments of x_second - x_first in raw space, in float64.

    Args:
        pair: Names of the first and the second source.
        n_rows: Rows summed over.
        mean: Mean difference.
        covariance: Covariance of the difference about that mean; the sum is divided by `n_rows`.
        mean_square_first: Mean squared norm of the first source's activation.
        mean_square_second: The same of the second's.
    """

    pair: tuple[str, str]
    n_rows: int
    mean: Float[Tensor, " d_model"]
    covariance: Float[Tensor, "d_model d_model"]
    mean_square_first: float
    mean_square_second: float

    @property
    def variance(self) -> float:
        """Total variance of the difference: the trace of its covariance."""
        return float(self.covariance.trace())

    @property
    def mean_square(self) -> float:
        """Mean squared norm of the difference: its variance and the squared norm of its mean."""
        return self.variance + float(self.mean.square().sum())


@torch.no_grad()
@typed
def difference_moments(
    batches: Iterable[MeasureBatch], sources: Sequence[Source], *, pair: tuple[str, str] | None = None
) -> DifferenceMoments:
    """Mean and covariance of x_second - x_first over all rows, read once.

    Batches are merged about their own means (Chan, Golub & LeVeque 1983), so a large common offset costs no
    digits. It holds d_model^2 numbers of 8 bytes (19 MB at 1,536) and takes 2 d_model^2 operations a row.

    Args:
        batches: Raw activations of some tokens.
        sources: Sources in the order of their columns.
        pair: (first, second); None for the first and the last source.

    Returns:
        The moments, on the CPU.

    Raises:
        ValueError: Sources of unequal widths or unknown ones, columns that do not fit, fewer than two rows,
            or a difference that is not finite.

    Example:
        moments = difference_moments(batches, crosscoder.sources)
        print(difference_of_means(moments).lines(), difference_pca(moments, n_components=8).lines())
    """
    first, second = compared_pair(sources, pair, where="difference_moments", one_width=True)
    columns = column_slices(sources)
    n, mean = 0, torch.zeros(first.d_model, dtype=torch.float64)
    products = torch.zeros(first.d_model, first.d_model, dtype=torch.float64)
    squares = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        if len(batch.rows) == 0:
            continue
        rows = check_activations(batch.rows, sources, where="difference_moments").double()
        a, b = rows[:, columns[first.name]], rows[:, columns[second.name]]
        own_mean, n_new = (b - a).mean(dim=0), len(rows)
        centered, shift = b - a - own_mean, own_mean.cpu() - mean
        products += (centered.T @ centered).cpu() + torch.outer(shift, shift) * (n * n_new / (n + n_new))
        mean += shift * (n_new / (n + n_new))
        squares += torch.stack([a.square().sum(), b.square().sum()]).cpu()
        n += n_new
    _check_moments(n, products, pair=(first.name, second.name))
    return DifferenceMoments(
        pair=(first.name, second.name),
        n_rows=n,
        mean=mean,
        covariance=products / n,
        mean_square_first=float(squares[0] / n),
        mean_square_second=float(squares[1] / n),
    )


def _check_moments(n: int, products: Tensor, *, pair: tuple[str, str]) -> None:
    if n < 2:
        raise ValueError(f"difference_moments: needs at least 2 rows, got {n}; is the stream exhausted?")
    if not bool(products.isfinite().all()):
        raise ValueError(
            f"difference_moments: {pair[1]} less {pair[0]} is NaN or infinite in some of {n} rows."
        )
