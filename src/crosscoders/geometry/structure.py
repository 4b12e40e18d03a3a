"""Structure of activations and decoders: dimension, subspaces, cosines, similarity of two models."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.sources import Source, check_activations, column_slices, width

_ROWS_AT_ONCE = 1024  # latents whose cosines with all others are held in memory


class ActivationCovariance:
    """Covariance of all sources' columns, streamed: one pass, any chunking, the same result.

    It holds `width^2` numbers in float64. Everything below that compares activations takes its blocks.

    Args:
        sources: Sources in the order of their columns.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = tuple(sources)
        self.n_rows = 0
        self._mean = torch.zeros(width(self.sources), dtype=torch.float64)
        self._scatter = torch.zeros(len(self._mean), len(self._mean), dtype=torch.float64)

    @typed
    def update(self, rows: Float[Tensor, "batch width"]) -> None:
        """Add activations.

        Args:
            rows: Raw activations of all sources, one token per row.

        Raises:
            ValueError: The columns are not those of the sources, or a value is not finite.
        """
        check_activations(rows, self.sources, where="ActivationCovariance.update")
        x = rows.detach().double().cpu()
        n = len(x)
        if n == 0:
            return
        if not bool(x.isfinite().all()):
            raise ValueError("ActivationCovariance.update: the activations hold NaN or infinity.")
        mean, total = x.mean(dim=0), self.n_rows + n
        centered, shift = x - mean, mean - self._mean
        self._scatter += centered.T @ centered + torch.outer(shift, shift) * (self.n_rows * n / total)
        self._mean += shift * (n / total)
        self.n_rows = total

    @typed
    def block(self, first: str, second: str) -> Float[Tensor, "_first _second"]:
        """Covariance of the columns of two sources (of one with itself, if they are the same).

        Args:
            first: Source of the rows.
            second: Source of the columns.

        Returns:
            Sum of products of centered activations over n - 1, in float64.

        Raises:
            ValueError: No such source, or fewer than two rows.
        """
        if self.n_rows < 2:
            raise ValueError(f"ActivationCovariance: needs at least 2 rows, got {self.n_rows}.")
        slices = column_slices(self.sources)
        for name in (first, second):
            if name not in slices:
                raise ValueError(f"ActivationCovariance: no source {name!r}; the sources are {list(slices)}.")
        return self._scatter[slices[first], slices[second]] / (self.n_rows - 1)


@typed
def spectrum(covariance: Float[Tensor, "d_model d_model"]) -> Float[Tensor, " d_model"]:
    """Variances along the principal axes, falling.

    Args:
        covariance: Covariance matrix.

    Returns:
        Variances in the squared units of the activations.
    """
    return torch.linalg.eigvalsh(covariance.double()).flip(0)


@typed
def leading_axes(
    covariance: Float[Tensor, "d_model d_model"], *, n_components: int
) -> Float[Tensor, "d_model _k"]:
    """Leading principal axes as orthonormal columns.

    Args:
        covariance: Covariance matrix.
        n_components: How many.

    Returns:
        One axis per column, the one of the largest variance first.

    Raises:
        ValueError: More axes than dimensions, or none.
    """
    if not 1 <= n_components <= covariance.shape[0]:
        raise ValueError(
            f"leading_axes: n_components must lie in 1 to {covariance.shape[0]}, got {n_components}."
        )
    return torch.linalg.eigh(covariance.double()).eigenvectors.flip(1)[:, :n_components]


@typed
def effective_dimension(variances: Float[Tensor, " _c"]) -> float:
    """Participation ratio (sum v)^2 / sum v^2: d for equal variances along d axes, 1 for a line.

    Args:
        variances: Variances along the principal axes, such as `spectrum` gives.

    Returns:
        The effective number of dimensions.

    Raises:
        ValueError: There is no variance.
    """
    v = variances.double()
    if not float(v.sum()) > 0:
        raise ValueError("effective_dimension: the activations do not vary, so it is undefined.")
    return float(v.sum().square() / v.square().sum())


@typed
def subspace_overlap(first: Float[Tensor, "d_model _k"], second: Float[Tensor, "d_model _l"]) -> float:
    """Mean squared cosine of the principal angles between two subspaces: ||U^T V||_F^2 / min(k, l).

    1 if one contains the other, 0 if they are orthogonal; two random ones of dimension k in d dimensions have
    the mean k / d.

    Args:
        first: Orthonormal columns U that span the one.
        second: Orthonormal columns V that span the other, in the same space.

    Returns:
        The overlap.

    Raises:
        ValueError: Columns that are not orthonormal.
    """
    for name, basis in (("first", first), ("second", second)):
        gram = basis.double().T @ basis.double()
        error = float((gram - torch.eye(len(gram), dtype=gram.dtype)).abs().max())
        if not error < 1e-4:
            raise ValueError(
                f"subspace_overlap: the columns of {name} are not orthonormal (off by {error:.2g}); "
                "pass leading_axes or the Q of a QR decomposition."
            )
    product = first.double().T @ second.double()
    return float(product.square().sum()) / min(product.shape)


@typed
def linear_cka(
    first: Float[Tensor, "_c _c"], second: Float[Tensor, "_d _d"], *, cross: Float[Tensor, "_c _d"]
) -> float:
    """Linear centered kernel alignment of two sets of activations of the same tokens (Kornblith et al. 2019).

    ||S_xy||_F^2 / (||S_xx||_F ||S_yy||_F) with covariances S: 1 for activations that differ by a rotation, a
    shift and one factor; widths may differ. Independent activations of n tokens have a little above zero.

    Args:
        first: Covariance of the first activations.
        second: Covariance of the second activations.
        cross: Covariance between them.

    Returns:
        The alignment, between 0 and 1.

    Raises:
        ValueError: One of the two does not vary.
    """
    norms = [float(torch.linalg.matrix_norm(s.double())) for s in (first, second)]
    if not min(norms) > 0:
        raise ValueError("linear_cka: activations that do not vary have no alignment.")
    return float(cross.double().square().sum()) / (norms[0] * norms[1])


@typed
def nearest_cosines(decoder: Float[Tensor, "latent d_model"]) -> Float[Tensor, " latent"]:
    """For each latent the largest |cosine| of its decoder vector with another latent's.

    Near 1 the dictionary holds a direction twice. For comparison take a random matrix of the same shape.

    Args:
        decoder: One decoder vector per latent; at least two latents.

    Returns:
        float64 values; NaN for a latent whose vector is zero, which counts as no neighbor either.

    Raises:
        ValueError: Fewer than two latents.
    """
    if len(decoder) < 2:
        raise ValueError(f"nearest_cosines: needs at least 2 latents, got {len(decoder)}.")
    unit, is_zero = _unit_rows(decoder)
    nearest = []
    for start in range(0, len(unit), _ROWS_AT_ONCE):
        cosines = (unit[start : start + _ROWS_AT_ONCE] @ unit.T).abs()
        own = torch.arange(len(cosines), device=cosines.device)
        cosines[own, start + own] = 0
        nearest.append(cosines.max(dim=1).values)
    return torch.where(is_zero, torch.nan, torch.cat(nearest))


@typed
def cosine_structure_correlation(
    first: Float[Tensor, "latent _c"], second: Float[Tensor, "latent _d"]
) -> float:
    """Correlation over pairs of latents of their decoder cosine in one source with that in the other.

    Pearson's r of the two cosine matrices above the diagonal: 1 if latents stand to each other in the second
    source as they do in the first, whatever rotation lies between; widths may differ.

    Args:
        first: Decoder vectors in one source.
        second: Those of the same latents in the other source.

    Returns:
        The correlation; latents whose vector is zero in either source are left out.

    Raises:
        ValueError: Fewer than three latents are left, or all cosines of a source are equal.
    """
    (a, zero_a), (b, zero_b) = _unit_rows(first), _unit_rows(second)
    kept = ~(zero_a | zero_b)
    a, b = a[kept], b[kept]
    if len(a) < 3:
        raise ValueError(f"cosine_structure_correlation: needs at least 3 latents, got {len(a)}.")
    n, means = len(a) * (len(a) - 1), _mean_cosines(a, b)
    moments = torch.zeros(3, dtype=torch.float64)
    for start in range(0, n_rows := len(a), _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, n_rows)
        x, y = ((unit[start:stop] @ unit.T - mean) for unit, mean in zip((a, b), means, strict=True))
        own = torch.arange(stop - start, device=x.device)
        x[own, start + own] = 0
        y[own, start + own] = 0
        moments += torch.stack([(x * y).sum(), x.square().sum(), y.square().sum()]).cpu() / n
    if not float(moments[1:].min()) > 0:
        raise ValueError("cosine_structure_correlation: all cosines of a source are equal.")
    return float(moments[0] / (moments[1] * moments[2]).sqrt())


def _unit_rows(decoder: Tensor) -> tuple[Tensor, Tensor]:
    """Rows at length one in float64, zero rows as they are, and which those are."""
    rows = decoder.detach().double()
    return F.normalize(rows, dim=1, eps=1e-300), (rows == 0).all(dim=1)


def _mean_cosines(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Mean cosine over pairs of different rows, from the norm of the rows' sum."""
    n = len(a)
    first, second = ((float(unit.sum(dim=0).square().sum()) - n) / (n * (n - 1)) for unit in (a, b))
    return first, second
