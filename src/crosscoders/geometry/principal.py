"""Principal component analysis in float64."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed


@dataclass(frozen=True, kw_only=True)
class PrincipalAxes:
    """Mean and leading principal axes of some points.

    Args:
        mean: Mean point.
        axes: Orthonormal columns, by falling variance; the largest entry of each is positive.
        variances: Variance along each axis (sum of squares over n - 1).
    """

    mean: Float[Tensor, " d_model"]
    axes: Float[Tensor, "d_model _c"]
    variances: Float[Tensor, " _c"]

    @typed
    def project(self, points: Float[Tensor, "*_any d_model"]) -> Float[Tensor, "*_any _c"]:
        """Coordinates along the axes, about the mean, in float64.

        Args:
            points: Points of the space that the axes lie in.
        """
        return (points.double() - self.mean) @ self.axes


@typed
def principal_axes(
    points: Float[Tensor, "batch d_model"], *, n_components: int, where: str = "principal_axes"
) -> PrincipalAxes:
    """Leading principal axes, by a singular value decomposition of the centered points.

    Args:
        points: Points; more than `n_components` of them, for n points span only n - 1 axes about their mean.
        n_components: How many axes.
        where: Start of the messages.

    Returns:
        Mean, axes and variances, in float64.

    Raises:
        ValueError: Too few points or too narrow ones for that many axes, or points that are not finite.
    """
    n_points, d_model = points.shape
    if not 1 <= n_components <= d_model:
        raise ValueError(f"{where}: n_components must lie in 1 to the width {d_model}, got {n_components}.")
    if n_points <= n_components:
        raise ValueError(
            f"{where}: {n_components} principal components need more than {n_components} different vectors, "
            f"got {n_points}; pass more words or lower n_components."
        )
    if not bool(points.isfinite().all()):
        raise ValueError(f"{where}: the vectors hold NaN or infinity.")
    mean = points.double().mean(dim=0)
    _, singular, rows = torch.linalg.svd(points.double() - mean, full_matrices=False)
    axes = rows[:n_components].T
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    variances = singular[:n_components].square() / (n_points - 1)
    return PrincipalAxes(mean=mean, axes=axes * largest.sign(), variances=variances)
