"""Difference of means: the one vector that tells two models apart if they differ everywhere alike."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.diffing.baselines.moments import DifferenceMoments


@dataclass(frozen=True, kw_only=True, eq=False)
class DifferenceOfMeans:
    """Mean of the second source less mean of the first, and how much of the difference it is.

    Args:
        pair: Names of the first and the second source.
        n_rows: Rows averaged over.
        vector: The difference, in raw space and float64.
        share_of_square: |mean|^2 / mean |x_second - x_first|^2: 1 if all rows differ alike. Rows whose
            differences have no common part give about 1 / (independent rows).
        share_of_variance: Share of the difference's variance about its mean that lies along the vector;
            1 / d_model in a random direction of equal variances. NaN where nothing varies.
        relative_norm: |mean| over the root mean squared norm of the first source's activation.
    """

    pair: tuple[str, str]
    n_rows: int
    vector: Float[Tensor, " d_model"]
    share_of_square: float
    share_of_variance: float
    relative_norm: float

    @typed
    def lines(self) -> list[str]:
        """The figures as lines of text."""
        first, second = self.pair
        return [
            f"difference of means, {second} less {first}, {self.n_rows} rows: "
            f"{self.share_of_square:.1%} of the mean squared difference, "
            f"{self.share_of_variance:.1%} of its variance lies along it, "
            f"norm {self.relative_norm:.3g} of {first}'s"
        ]


@typed
def difference_of_means(moments: DifferenceMoments) -> DifferenceOfMeans:
    """The difference of means and its shares; add it to the first model's stream as a baseline.

    share_of_square = |m|^2 / (|m|^2 + tr C) and share_of_variance = u' C u / tr C with u = m / |m|, where m
    and C are mean and covariance of the difference.

    Args:
        moments: From `difference_moments`.

    Returns:
        Vector and shares; NaN where a denominator is zero.
    """
    direction = moments.mean / moments.mean.norm()
    along = direction @ moments.covariance @ direction
    squared = moments.mean.square().sum()
    return DifferenceOfMeans(
        pair=moments.pair,
        n_rows=moments.n_rows,
        vector=moments.mean,
        share_of_square=float(squared / torch.tensor(moments.mean_square, dtype=torch.float64)),
        share_of_variance=float(along / moments.covariance.trace()),
        relative_norm=float((squared / torch.tensor(moments.mean_square_first, dtype=torch.float64)).sqrt()),
    )
