"""Sizes of the programs of the sparse products and row updates: one function for each family of kernels.

All are derived from two rules, and not yet measured. What programs that run together gather from must fit
the second-level cache: programs next to each other share a chunk of columns, and the chunk is as narrow as
that asks. And a gathered tile takes one warp: then no sum leaves the warp, each thread loads 16 bytes at a
time, and the 16 to 32 programs that the registers admit keep at least 64 KB in flight on each multiprocessor,
where latency times bandwidth of the cache is about 25 KB.
"""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from crosscoders.kernels.triton.launch import next_power_of_2

# Half of the second-level cache of an H100 (50 MB in two partitions), and some room for what streams through.
_GATHERED_BYTES = 20_000_000
_CACHE_LINE_BYTES = 128
_WARP_ROW_BYTES = 512  # 16 bytes for each thread of a warp
_TILE_BYTES = 4096


@final
@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Sizes of one program; `columns` and `entries` are powers of two. They change no result but by rounding.

    Args:
        columns: Columns of one chunk.
        entries: Rows gathered at once.
        split: Entries of one latent that one program sums at most; more are cut into pieces.
        num_warps: Warps of a program.
    """

    columns: int
    entries: int = 1
    split: int = 1
    num_warps: int = 1


def decode_tiles(W_dec: Tensor) -> Tiles:
    """Tiles of decoding, where every program gathers from all decoder rows.

    Args:
        W_dec: Decoder rows `[latent, width]`.

    Returns:
        The sizes.
    """
    return _gather_tiles(W_dec, most_columns=_WARP_ROW_BYTES // W_dec.element_size())


def backward_tiles(source: Tensor) -> Tiles:
    """Tiles of the backward passes, with Adam or without, where every program gathers from all tokens' rows.

    There are fewer tokens than latents, so chunks may be wider: an entry's dot product has fewer parts, and
    its indices are read less often. 512 columns of sum, weight and moments still fit a warp's registers.

    Args:
        source: The rows that are gathered, `[batch, width]`.

    Returns:
        The sizes.
    """
    return _gather_tiles(source, most_columns=512, split=256)


def adam_tiles(width: int) -> Tiles:
    """Tiles of Adam alone: 16 bytes a thread of each of the four matrices it reads.

    Args:
        width: Columns.

    Returns:
        The sizes.
    """
    return Tiles(columns=min(512, next_power_of_2(width)), num_warps=4)


def _gather_tiles(rows: Tensor, *, most_columns: int, split: int = 1) -> Tiles:
    n_rows, width = rows.shape
    itemsize = rows.element_size()
    fitting = max(_CACHE_LINE_BYTES // itemsize, _GATHERED_BYTES // max(1, n_rows * itemsize))
    columns = min(most_columns, _floor_power_of_2(fitting), next_power_of_2(width))
    entries = max(2, min(32, _TILE_BYTES // (columns * itemsize)))
    return Tiles(columns=columns, entries=entries, split=split)


def _floor_power_of_2(number: int) -> int:
    return 1 << (number.bit_length() - 1)
