"""The tokens around chosen places: cut to the row and to the document."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from crosscoders._typing import typed


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Runs of tokens within a row.

    Args:
        start: First token of each, counted through all rows.
        length: Tokens of each.
        at: Which of its tokens is the marked one.
    """

    start: Int[Tensor, " _place"]
    length: Int[Tensor, " _place"]
    at: Int[Tensor, " _place"]

    @typed
    def tokens(self) -> Int[Tensor, " _token"]:
        """Every token of every window, window after window."""
        first = self.length.cumsum(dim=0) - self.length
        within = torch.arange(int(self.length.sum())) - first.repeat_interleave(self.length)
        return self.start.repeat_interleave(self.length) + within


@typed
def windows_around(
    marked: Int[Tensor, " _place"],
    tokens: Int[Tensor, "batch pos"],
    *,
    n_before: int,
    n_after: int,
    end_of_text: int | None,
) -> Windows:
    """Windows around tokens, of one row and one document each.

    A document ends before an end-of-text token that follows the marked one and starts after one that precedes
    it, as in `crosscoders.reasoning.snippets.make_snippet`.

    Args:
        marked: The tokens, counted through all rows.
        tokens: Rows of token ids.
        n_before: Tokens wanted before each.
        n_after: Tokens wanted after each.
        end_of_text: The id that parts documents; None where there is none.
    """
    first, stop = _documents(tokens, end_of_text)
    start = torch.maximum(marked - n_before, first.flatten()[marked])
    end = torch.minimum(marked + n_after + 1, stop.flatten()[marked])
    return Windows(start=start, length=end - start, at=marked - start)


def _documents(tokens: Tensor, end_of_text: int | None) -> tuple[Tensor, Tensor]:
    """For each token where its document starts and where it stops, an end-of-text token aside."""
    n_rows, n_positions = tokens.shape
    at = torch.arange(tokens.numel()).view(n_rows, n_positions)
    row_first, row_stop = at[:, :1], at[:, -1:] + 1
    is_end = torch.zeros_like(tokens, dtype=torch.bool) if end_of_text is None else tokens == end_of_text
    last_end = torch.where(is_end, at + 1, row_first).cummax(dim=1).values
    next_end = torch.where(is_end, at, row_stop).flip(1).cummin(dim=1).values.flip(1)
    return (
        torch.cat([row_first, last_end[:, :-1]], dim=1),  # strictly before
        torch.cat([next_end[:, 1:], row_stop], dim=1),  # strictly after
    )
