"""Device code that sums gathered rows: the inner loops of decoding and of both backward passes.

Every load is converted to float32 at once; every sum is float32, in an order that follows from the shapes and
the entries alone. Row offsets are int64: matrices may have more than 2^31 elements. `None` stands for what a
kernel leaves out.
"""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from crosscoders.kernels.sparse_latents import LatentMajor


class LatentEntries(NamedTuple):
    """The entries of sparse latents, sorted by latent, and the rows they weight; what the kernels read.

    Args:
        source: Rows to sum, `[batch, width]`.
        rows: Row of each entry.
        factors: Factor of each entry.
        col_ptr: Latent `j` owns the entries `col_ptr[j]:col_ptr[j + 1]`.
        owners: Latent of the first entry of each window (see `split_piece`).
        partials: Workspace of two rows for each window.
        n_windows: Number of windows.
    """

    source: Tensor
    rows: Tensor
    factors: Tensor
    col_ptr: Tensor
    owners: Tensor
    partials: Tensor
    n_windows: int


def latent_entries(source: Tensor, values: Tensor, by_latent: LatentMajor, *, split: int) -> LatentEntries:
    """Put sorted entries into the form that kernels read; only device work, whatever the latents are.

    Args:
        source: Rows to sum, `[batch, width]`.
        values: Factor of each stored entry, row by row.
        by_latent: The entries sorted by latent.
        split: Entries of a window.

    Returns:
        The entries and a workspace, whose content is undefined.
    """
    starts = torch.arange(0, by_latent.order.shape[0], split, device=source.device)
    return LatentEntries(
        source=source.contiguous(),
        rows=by_latent.rows,
        factors=values.detach().index_select(0, by_latent.order),
        col_ptr=by_latent.col_ptr,
        owners=torch.searchsorted(by_latent.col_ptr[1:], starts, right=True),
        partials=source.new_empty((2 * starts.shape[0], source.shape[1]), dtype=torch.float32),
        n_windows=starts.shape[0],
    )


@triton.jit
@no_type_check
def chunk_columns(chunk, BOUNDARIES: tl.constexpr, FIRST_CHUNKS: tl.constexpr, COLUMNS: tl.constexpr):
    """Columns of a chunk, and one past the last column of its source: no chunk has columns of two sources."""
    start = chunk * COLUMNS
    stop = chunk * 0 + BOUNDARIES[1]
    for source in tl.static_range(1, len(FIRST_CHUNKS) - 1):
        is_reached = chunk >= FIRST_CHUNKS[source]
        start = tl.where(is_reached, BOUNDARIES[source] + (chunk - FIRST_CHUNKS[source]) * COLUMNS, start)
        stop = tl.where(is_reached, BOUNDARIES[source + 1], stop)
    return start + tl.arange(0, COLUMNS), stop


@triton.jit
@no_type_check
def weighted_rows(
    source, index, factors, start, stop, columns, in_width, width, weight, dots, ENTRIES: tl.constexpr
):
    """Sum of `factors[j] * source[index[j], columns]` over `start <= j < stop`.

    With `dots`, `dots[j] = <source[index[j], columns], weight>` is stored from the same loads.
    """
    total = tl.zeros(columns.shape, tl.float32)
    for first in range(start, stop, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        here = entry < stop
        row = tl.load(index + entry, mask=here, other=0).to(tl.int64)
        factor = tl.load(factors + entry, mask=here, other=0.0).to(tl.float32)
        place = row[:, None] * width + columns[None, :]
        tile = tl.load(source + place, mask=here[:, None] & in_width[None, :], other=0.0).to(tl.float32)
        total += tl.sum(factor[:, None] * tile, 0)
        if dots is not None:
            tl.store(dots + entry, tl.sum(tile * weight[None, :], 1), mask=here)
    return total


@triton.jit
@no_type_check
def split_piece(entries, slot, SPLIT: tl.constexpr):
    """Latent and entries `start:stop` of the piece that belongs to `slot`; empty where there is none.

    The sorted entries are cut into windows of `SPLIT`. A latent with more entries than that is cut at the
    window bounds; a window holds at most the end of one such latent (slot `2 * window`) and the start of
    another (slot `2 * window + 1`), which is then the owner of the next window's first entry. Where a piece
    goes follows from `col_ptr` alone: nothing is counted, and nothing waits for the host.
    """
    window = (slot // 2).to(tl.int64)
    asked = window + slot % 2
    latent = tl.load(entries.owners + asked, mask=asked < entries.n_windows, other=0)
    first = tl.load(entries.col_ptr + latent)
    last = tl.load(entries.col_ptr + latent + 1)
    lower = window * SPLIT
    upper = lower + SPLIT
    start = tl.maximum(first, lower)
    stop = tl.minimum(last, upper)
    stop = tl.where(last - first > SPLIT, stop, start)
    if slot % 2 == 1:
        # Past the last window, latent 0 is read: it starts at entry 0, which is inside of no window.
        stop = tl.where(first > lower, stop, start)
    return latent, start, stop


@triton.jit
@no_type_check
def latent_gradient(
    entries,
    latent,
    columns,
    in_width,
    width,
    weight,
    dots,
    ENTRIES: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """One latent's gradient in a chunk of columns: the sum of its entries, or of the pieces of a split."""
    start = tl.load(entries.col_ptr + latent)
    stop = tl.load(entries.col_ptr + latent + 1)
    if stop - start > SPLIT:
        total = tl.zeros(columns.shape, tl.float32)
        for first in range(start // SPLIT, (stop + SPLIT - 1) // SPLIT, ENTRIES):
            window = first + tl.arange(0, ENTRIES)
            here = window * SPLIT < stop
            slot = 2 * window + tl.where(window * SPLIT < start, 1, 0)
            place = slot[:, None].to(tl.int64) * width + columns[None, :]
            piece = tl.load(entries.partials + place, mask=here[:, None] & in_width[None, :], other=0.0)
            total += tl.sum(piece, 0)
    else:
        total = weighted_rows(
            entries.source,
            entries.rows,
            entries.factors,
            start,
            stop,
            columns,
            in_width,
            width,
            weight,
            dots,
            ENTRIES,
        )
    return total


@triton.jit
@no_type_check
def sum_factors(entries, latent, BLOCK: tl.constexpr):
    """Sum of one latent's factors: the gradient of its bias."""
    start = tl.load(entries.col_ptr + latent)
    stop = tl.load(entries.col_ptr + latent + 1)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(start, stop, BLOCK):
        entry = first + tl.arange(0, BLOCK)
        total += tl.load(entries.factors + entry, mask=entry < stop, other=0.0).to(tl.float32)
    return tl.sum(total, 0)
