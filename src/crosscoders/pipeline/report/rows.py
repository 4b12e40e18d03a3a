"""Which held-out rows of text a report reads: every kind of text alike, whole rows, as many as fit."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from crosscoders._typing import typed

_SEED = 0  # the same rows every time a report is written


@typed
def choose_rows(
    counted: Bool[Tensor, "held_out pos"], origin: Int[Tensor, "held_out pos"], *, n_tokens: int
) -> Int[Tensor, " row"]:
    """Rows with at most `n_tokens` counted tokens, spread evenly over the kinds of text.

    The kinds take turns, each with its rows in a fixed random order; one that has no more is passed over. A
    row of several kinds stands for that of most of its counted tokens (the first one of equals).

    Args:
        counted: Which held-out tokens count.
        origin: Kind of text of each.
        n_tokens: Counted tokens wanted at most.

    Returns:
        Numbers of the rows, ascending.

    Raises:
        ValueError: Not one row with a counted token fits.
    """
    rows = counted.any(dim=1).nonzero().flatten()
    kinds = _kinds(counted[rows], origin[rows])
    shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(_SEED))
    turn = torch.empty(len(rows), dtype=torch.int64)
    for kind in kinds.unique().tolist():
        own = shuffled[kinds[shuffled] == kind]
        turn[own] = torch.arange(len(own))
    order = torch.argsort(turn * (len(kinds) + 1) + kinds)
    fits = counted[rows[order]].sum(dim=1).cumsum(dim=0) <= n_tokens
    if not bool(fits.any()):
        raise ValueError(
            f"report: no row of text with a counted token fits into n_tokens={n_tokens}; "
            f"rows hold up to {counted.shape[1]} tokens, allow more."
        )
    return rows[order[fits]].sort().values


def _kinds(counted: Tensor, origin: Tensor) -> Tensor:
    """Kind of most counted tokens of each row."""
    n_kinds = int(origin.max()) + 1 if origin.numel() else 0
    counts = [(counted & (origin == kind)).sum(dim=1) for kind in range(n_kinds)]
    return torch.stack(counts, dim=1).argmax(dim=1) if counts else torch.zeros(len(counted)).long()
