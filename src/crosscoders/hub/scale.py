"""The scale of sources, estimated from their activations when a foreign crosscoder lacks it."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.buffer import ActivationBuffer
from crosscoders.sources import Source, check_activations, check_sources, column_slices, scale_from_mean_norm


@typed
def estimate_scale(
    rows: ActivationBuffer | Iterable[Float[Tensor, "_ width"]] | Float[Tensor, "batch width"],
    *,
    sources: Sequence[Source] | None = None,
) -> dict[str, float]:
    """The scale that brings each source's mean activation norm to sqrt(d_model).

    scale = sqrt(d_model) / mean over tokens of |x|_2 (Lindsey et al. 2024), in float64. Use text like that
    which the crosscoder was trained on, and leave out the tokens that training left out, such as the first
    of each sequence: their norms are far larger.

    Args:
        rows: An `ActivationBuffer`, whose own estimate from its first window is taken, or raw activations
            `[batch, width]`, one tensor or any number of them.
        sources: Names and widths in the order of the columns; needed with tensors, not with a buffer.

    Returns:
        Scale by source name, as `from_pretrained(scale=...)` takes it.

    Raises:
        ValueError: No rows, rows that are zero or not finite, another width, or `sources` given with a buffer
            or missing without one.

    Example:
        >>> import torch
        >>> from crosscoders.hub import estimate_scale
        >>> from crosscoders.sources import Source
        >>> estimate_scale(torch.full((3, 4), 2.0), sources=[Source(name="base", d_model=4)])
        {'base': 0.5}
    """
    if isinstance(rows, ActivationBuffer):
        if sources is not None:
            raise ValueError("estimate_scale: the buffer knows its sources; leave sources out.")
        return {source.name: source.scale for source in rows.sources}
    if sources is None:
        raise ValueError("estimate_scale: tensors do not say which columns are whose; pass sources=.")
    check_sources(sources)
    norms = _mean_norms([rows] if isinstance(rows, Tensor) else rows, sources)
    return {source.name: scale_from_mean_norm(norms[source.name], source.d_model) for source in sources}


def _mean_norms(batches: Iterable[Tensor], sources: Sequence[Source]) -> dict[str, float]:
    columns, n_rows = column_slices(sources), 0
    sums = dict.fromkeys(columns, 0.0)
    for batch in batches:
        x = check_activations(batch, sources, where="estimate_scale")
        n_rows += x.shape[0]
        for name, part in columns.items():
            norms = torch.linalg.vector_norm(x[:, part], dim=1, dtype=torch.float64)
            sums[name] += float(norms.sum())
    if n_rows == 0:
        raise ValueError("estimate_scale: expected at least one row of activations, got none.")
    return {name: total / n_rows for name, total in sums.items()}
