"""Sparse decoding on the GPU: each token gathers the decoder rows of its few latents.

One program is one token and one chunk of columns. Tokens vary fastest, so the programs that run together read
the same columns of `W_dec`, and that chunk stays in the second-level cache (see `tiles.py`).
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.kernels.triton.gather import weighted_rows
from crosscoders.kernels.triton.launch import cdiv, launch
from crosscoders.kernels.triton.tiles import Tiles, decode_tiles


@triton.jit
@no_type_check
def _decode_kernel(
    row_ptr,
    indices,
    values,
    W_dec,
    bias,
    x,
    out,
    squares,
    n_rows,
    width,
    COLUMNS: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    columns = chunk * COLUMNS + tl.arange(0, COLUMNS)
    in_width = columns < width
    start = tl.load(row_ptr + row)
    stop = tl.load(row_ptr + row + 1)
    total = weighted_rows(W_dec, indices, values, start, stop, columns, in_width, width, None, None, ENTRIES)
    if bias is not None:
        total += tl.load(bias + columns, mask=in_width, other=0.0).to(tl.float32)
    if x is not None:
        target = tl.load(x + row * width + columns, mask=in_width, other=0.0, eviction_policy="evict_first")
        total -= target.to(tl.float32)
        tl.store(squares + chunk.to(tl.int64) * n_rows + row, tl.sum(total * total, 0))
    tl.store(out + row * width + columns, total, mask=in_width)


def decode(
    latents: SparseLatents,
    W_dec: Tensor,
    *,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
    tiles: Tiles | None = None,
) -> Tensor:
    """Sum of decoder rows weighted by sparse latents, plus a bias; summed in float32.

    Args:
        latents: Sparse latents of `[batch, latent]`.
        W_dec: Decoder rows `[latent, width]`, float32 or bfloat16.
        bias: `[width]`, float32.
        out_dtype: Of the result.
        tiles: Sizes of one program; None for `tiles.decode_tiles`.

    Returns:
        `latents @ W_dec + bias`, `[batch, width]`.
    """
    out = W_dec.new_empty((latents.n_rows, W_dec.shape[1]), dtype=out_dtype)
    _decode(latents, W_dec, out, bias=bias, x=None, squares=None, tiles=tiles or decode_tiles(W_dec))
    return out


def decode_residual(
    latents: SparseLatents,
    W_dec: Tensor,
    *,
    b_dec: Tensor,
    x: Tensor,
    out_dtype: torch.dtype = torch.float32,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor]:
    """Reconstruction minus target, and the sum of its squares from before rounding to `out_dtype`.

    Args:
        latents: Sparse latents of `[batch, latent]`.
        W_dec: Decoder rows `[latent, width]`, float32 or bfloat16.
        b_dec: Decoder bias `[width]`, float32.
        x: Target `[batch, width]`, float32 or bfloat16.
        out_dtype: Of the residual.
        tiles: Sizes of one program; None for `tiles.decode_tiles`.

    Returns:
        `latents @ W_dec + b_dec - x`, `[batch, width]`, and one float32 number.
    """
    tiles = tiles or decode_tiles(W_dec)
    out = W_dec.new_empty((latents.n_rows, W_dec.shape[1]), dtype=out_dtype)
    n_chunks = cdiv(W_dec.shape[1], tiles.columns)
    squares = W_dec.new_empty((n_chunks, latents.n_rows), dtype=torch.float32)
    _decode(latents, W_dec, out, bias=b_dec, x=x, squares=squares, tiles=tiles)
    return out, squares.sum()


def _decode(
    latents: SparseLatents,
    W_dec: Tensor,
    out: Tensor,
    *,
    bias: Tensor | None,
    x: Tensor | None,
    squares: Tensor | None,
    tiles: Tiles,
) -> None:
    n_rows, width = out.shape
    launch(
        _decode_kernel,
        (n_rows, cdiv(width, tiles.columns)),
        latents.row_ptr,
        latents.indices,
        latents.values,
        W_dec.contiguous(),
        bias,
        None if x is None else x.contiguous(),
        out,
        squares,
        n_rows,
        width,
        COLUMNS=tiles.columns,
        ENTRIES=tiles.entries,
        num_warps=tiles.num_warps,
    )
