"""Principal axes of the difference of two sources: the best that so many fixed directions can do."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.diffing.baselines.moments import DifferenceMoments


@dataclass(frozen=True, kw_only=True, eq=False)
class DifferencePCA:
    """Principal axes of x_second - x_first about its mean, in raw space.

    Args:
        pair: Names of the first and the second source.
        n_rows: Rows they were fitted on.
        eigenvalues: Variance along every axis, largest first; those of directions without variance come out
            as rounding about zero.
        directions: Unit vectors of the leading axes; of either sign.
    """

    pair: tuple[str, str]
    n_rows: int
    eigenvalues: Float[Tensor, " d_model"]
    directions: Float[Tensor, "_component d_model"]

    @property
    def explained_share(self) -> Float[Tensor, " d_model"]:
        """Share of the variance that the first 1, 2, ... axes explain on the rows they were fitted on."""
        return self.eigenvalues.cumsum(0) / self.eigenvalues.sum()

    @typed
    def n_for(self, share: int | float) -> int:
        """Fewest axes that explain this share of the variance.

        Args:
            share: Above 0, below 1.

        Raises:
            ValueError: The share is out of range, or nothing varies.
        """
        if not 0 < share < 1:
            raise ValueError(f"DifferencePCA.n_for: share must lie between 0 and 1, got {share}.")
        if not bool(self.explained_share.isfinite().all()):
            raise ValueError("DifferencePCA.n_for: the difference does not vary, so no axis explains it.")
        return int((self.explained_share < share).sum()) + 1

    @typed
    def explained_on(self, moments: DifferenceMoments) -> Float[Tensor, " _component"]:
        """Share of the variance of other rows that the first 1, 2, ... of `directions` explain.

        Args:
            moments: Of rows that the axes were not fitted on.

        Raises:
            ValueError: Another pair of sources.
        """
        if moments.pair != self.pair or len(moments.mean) != self.directions.shape[1]:
            raise ValueError(
                f"DifferencePCA.explained_on: fitted on {self.pair} of width {self.directions.shape[1]}, got "
                f"moments of {moments.pair} of width {len(moments.mean)}."
            )
        along = ((self.directions @ moments.covariance) * self.directions).sum(dim=1)
        return along.cumsum(0) / moments.covariance.trace()

    @typed
    def lines(self) -> list[str]:
        """The figures as lines of text."""
        first, second = self.pair
        if not bool(self.explained_share.isfinite().all()):
            return [f"principal axes of {second} less {first}: the difference does not vary"]
        n, share = len(self.directions), float(self.explained_share[len(self.directions) - 1])
        counts = ", ".join(f"{self.n_for(at)} for {at:.0%}" for at in (0.5, 0.9))
        return [
            f"principal axes of {second} less {first}, {self.n_rows} rows: the first {n} explain {share:.1%} "
            f"of the variance; axes needed: {counts} (of {len(self.eigenvalues)})"
        ]


@typed
def difference_pca(moments: DifferenceMoments, *, n_components: int) -> DifferencePCA:
    """Principal axes of the difference: eigenvectors of its covariance, largest variance first.

    Args:
        moments: From `difference_moments`.
        n_components: Directions to keep; all eigenvalues are kept.

    Returns:
        The axes, in float64.

    Raises:
        ValueError: `n_components` outside 1..d_model.
    """
    d_model = len(moments.mean)
    if not 1 <= n_components <= d_model:
        raise ValueError(f"difference_pca: n_components must lie in 1..{d_model}, got {n_components}.")
    ascending, vectors = torch.linalg.eigh(moments.covariance)
    return DifferencePCA(
        pair=moments.pair,
        n_rows=moments.n_rows,
        eigenvalues=ascending.flip(0),
        directions=vectors.T.flip(0)[:n_components].contiguous(),
    )
