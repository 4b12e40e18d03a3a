"""A linear map from one source's space to another's: the common space that unequal widths lack."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.diffing.batches import MeasureBatch
from crosscoders.sources import Source, check_activations, column_slices, compared_pair, width


@torch.no_grad()
@typed
def fit_linear_map(
    batches: Iterable[MeasureBatch],
    sources: Sequence[Source],
    *,
    pair: tuple[str, str] | None = None,
    ridge: float = 1e-3,
) -> Float[Tensor, "_second _first"]:
    """Ridge regression of the second source on the first, both centered and in normalized space.

    M = Cov(y, x) (Cov(x, x) + ridge * tr Cov(x, x) / d_model * I)^-1 (Hoerl & Kennard 1970). Carried through
    it, what both sources share comes out as the second source has it; what was rotated does not, as long as
    many features share few dimensions and the map cannot turn one of them alone.

    Args:
        batches: Raw activations; they are read once.
        sources: Sources in the order of the columns.
        pair: Names of two sources; the first and the last by default.
        ridge: Penalty in units of the mean variance of a coordinate.

    Returns:
        The map, in float64: y - mean(y) is about M (x - mean(x)).

    Raises:
        ValueError: Unknown sources, columns that do not fit, fewer rows than the first source's width,
            values that are not finite, or `ridge` not above zero.
    """
    first, second = compared_pair(sources, pair, where="fit_linear_map")
    if not ridge > 0:
        raise ValueError(f"fit_linear_map: ridge must be above zero, got {ridge}.")
    n, total = 0, torch.zeros(width(sources), dtype=torch.float64)
    products = torch.zeros(len(total), len(total), dtype=torch.float64)
    for batch in batches:
        rows = check_activations(batch.rows, sources, where="fit_linear_map").double().cpu()
        n, total, products = n + len(rows), total + rows.sum(dim=0), products.addmm_(rows.T, rows)
    if n < first.d_model:
        raise ValueError(
            f"fit_linear_map: got {n} rows, fewer than the width {first.d_model} of {first.name!r}."
        )
    if not bool(products.isfinite().all()):
        raise ValueError("fit_linear_map: the activations hold NaN or infinity.")
    covariance = products / n - torch.outer(total / n, total / n)
    columns = column_slices(sources)
    x, y = columns[first.name], columns[second.name]
    penalty = ridge * covariance[x, x].trace() / first.d_model * torch.eye(first.d_model).double()
    raw = torch.linalg.solve(covariance[x, x] + penalty, covariance[x, y]).T
    return raw * (second.scale / first.scale)
