"""Backward passes of sparse decoding and encoding, one latent after the other.

One program is one latent and one chunk of columns; it sums the rows of `grad` or `x` that the latent's
entries name. The decoder's pass takes the gradient of the values from the same loads. Latents with more
entries than `Tiles.split` are cut into pieces by a kernel that runs before (`gather.split_piece`): no program
is much longer than the others, and nothing is added atomically. A latent without entries gets a zero row, so
no output needs clearing. The `_adam_` variants store no gradient: the program that summed it updates its part
of the weights.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from crosscoders.kernels.adam import AdamMatrix, AdamStep
from crosscoders.kernels.sparse_latents import LatentMajor, SparseLatents
from crosscoders.kernels.triton.adam import chunks_of, first_chunks, row_update, update_columns, write_norms
from crosscoders.kernels.triton.gather import (
    LatentEntries,
    chunk_columns,
    latent_entries,
    latent_gradient,
    split_piece,
    sum_factors,
    weighted_rows,
)
from crosscoders.kernels.triton.launch import cdiv, launch
from crosscoders.kernels.triton.tiles import Tiles, backward_tiles

_FACTORS_AT_ONCE = tl.constexpr(64)
_DOTS_PER_PROGRAM = 512


@triton.jit
@no_type_check
def _split_kernel(
    entries,
    weights,
    dots,
    partials,
    n_entries,
    width,
    BOUNDARIES: tl.constexpr,
    FIRST_CHUNKS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ENTRIES: tl.constexpr,
    SPLIT: tl.constexpr,
):
    slot = tl.program_id(0)
    chunk = tl.program_id(1)
    latent, start, stop = split_piece(entries, slot, SPLIT)
    if start < stop:
        columns, last = chunk_columns(chunk, BOUNDARIES, FIRST_CHUNKS, COLUMNS)
        in_width = columns < last
        weight = None
        if dots is not None:
            weight = tl.load(weights + latent * width + columns, mask=in_width, other=0.0).to(tl.float32)
            dots += chunk.to(tl.int64) * n_entries
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
        tl.store(partials + slot.to(tl.int64) * width + columns, total, mask=in_width)


@triton.jit
@no_type_check
def _gradient_kernel(
    entries,
    weights,
    dots,
    grad,
    squares,
    bias_grad,
    n_entries,
    n_latents,
    width,
    BOUNDARIES: tl.constexpr,
    FIRST_CHUNKS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ENTRIES: tl.constexpr,
    SPLIT: tl.constexpr,
):
    latent = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    columns, last = chunk_columns(chunk, BOUNDARIES, FIRST_CHUNKS, COLUMNS)
    in_width = columns < last
    place = latent * width + columns
    weight = None
    if dots is not None:
        weight = tl.load(weights + place, mask=in_width, other=0.0, eviction_policy="evict_first")
        weight = weight.to(tl.float32)
        dots += chunk.to(tl.int64) * n_entries
    total = latent_gradient(entries, latent, columns, in_width, width, weight, dots, ENTRIES, SPLIT)
    tl.store(grad + place, total, mask=in_width, eviction_policy="evict_first")
    tl.store(squares + chunk.to(tl.int64) * n_latents + latent, tl.sum(total * total, 0))
    if bias_grad is not None:  # noqa: SIM102 - decided while compiling, the other while running
        if chunk == 0:
            tl.store(bias_grad + latent, sum_factors(entries, latent, _FACTORS_AT_ONCE))


@triton.jit
@no_type_check
def _gradient_adam_kernel(
    entries,
    update,
    dots,
    squares,
    bias_grad,
    n_entries,
    n_latents,
    width,
    BOUNDARIES: tl.constexpr,
    FIRST_CHUNKS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ENTRIES: tl.constexpr,
    SPLIT: tl.constexpr,
):
    latent = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    columns, last = chunk_columns(chunk, BOUNDARIES, FIRST_CHUNKS, COLUMNS)
    in_width = columns < last
    place = latent * width + columns
    # The weights from before the update: the gradient of the values is theirs.
    weight = tl.load(update.weight + place, mask=in_width, other=0.0, eviction_policy="evict_first")
    if dots is not None:
        dots += chunk.to(tl.int64) * n_entries
    total = latent_gradient(entries, latent, columns, in_width, width, weight, dots, ENTRIES, SPLIT)
    tl.store(squares + chunk.to(tl.int64) * n_latents + latent, tl.sum(total * total, 0))
    update_columns(update, weight, total, latent, chunk, columns, last, n_latents, width)
    if bias_grad is not None:  # noqa: SIM102 - decided while compiling, the other while running
        if chunk == 0:
            tl.store(bias_grad + latent, sum_factors(entries, latent, _FACTORS_AT_ONCE))


@triton.jit
@no_type_check
def _sum_dots_kernel(dots, order, out, n_entries, n_chunks, ENTRIES: tl.constexpr):
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    here = entry < n_entries
    total = tl.zeros((ENTRIES,), tl.float32)
    part = dots + entry
    for _ in range(n_chunks):
        total += tl.load(part, mask=here, other=0.0)
        part += n_entries
    tl.store(out + tl.load(order + entry, mask=here, other=0), total, mask=here)


def decoder_backward(
    grad: Tensor,
    latents: SparseLatents,
    by_latent: LatentMajor,
    *,
    W_dec: Tensor,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of decoding with respect to the stored values and to the decoder rows, from one gather.

    Args:
        grad: Gradient with respect to the decoded rows `[batch, width]`, float32 or bfloat16.
        latents: What was decoded.
        by_latent: Their entries sorted by latent.
        W_dec: Decoder rows `[latent, width]`, float32 or bfloat16.
        tiles: Sizes of one program; None for `tiles.backward_tiles`.

    Returns:
        `<grad[row], W_dec[latent]>` of each stored entry, `latents^T grad`, and the latter's sum of squares;
        all float32.
    """
    tiles = tiles or backward_tiles(grad)
    entries = latent_entries(grad, latents.values, by_latent, split=tiles.split)
    chunks = first_chunks((0, grad.shape[1]), columns=tiles.columns)
    dots = grad.new_empty((chunks[-1], by_latent.order.shape[0]), dtype=torch.float32)
    grad_W_dec, square = _gradient(entries, W_dec.contiguous(), dots, None, chunks=chunks, tiles=tiles)
    return _sum_dots(dots, by_latent), grad_W_dec, square


def encoder_backward(
    grad_values: Tensor, x: Tensor, by_latent: LatentMajor, *, tiles: Tiles | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `x W_enc^T + b_enc` where only the stored entries received one.

    Args:
        grad_values: Gradient with respect to the stored pre-activations.
        x: What was encoded `[batch, width]`, float32 or bfloat16.
        by_latent: The entries sorted by latent.
        tiles: Sizes of one program; None for `tiles.backward_tiles`.

    Returns:
        Gradients of the encoder rows and of the bias, and the former's sum of squares, all float32.
    """
    tiles = tiles or backward_tiles(x)
    entries = latent_entries(x, grad_values, by_latent, split=tiles.split)
    chunks = first_chunks((0, x.shape[1]), columns=tiles.columns)
    grad_b_enc = entries.partials.new_empty(by_latent.col_ptr.shape[0] - 1)
    grad_W_enc, square = _gradient(entries, None, None, grad_b_enc, chunks=chunks, tiles=tiles)
    return grad_W_enc, grad_b_enc, square


def decoder_backward_adam_(
    grad: Tensor,
    latents: SparseLatents,
    by_latent: LatentMajor,
    *,
    matrix: AdamMatrix,
    step: AdamStep,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor]:
    """`decoder_backward` and Adam in one pass over the decoder, whose gradient is never stored.

    Args:
        grad: Gradient with respect to the decoded rows `[batch, width]`, float32 or bfloat16.
        latents: What was decoded.
        by_latent: Their entries sorted by latent.
        matrix: The decoder and its moments, contiguous; updated in place.
        step: Numbers of the update.
        tiles: Sizes of one program; None for `tiles.backward_tiles`.

    Returns:
        `<grad[row], weight[latent]>` of each stored entry, with the float32 weights from before the update,
        and the sum of squares of the rows' gradient, before `step.grad_scale`.
    """
    tiles = tiles or backward_tiles(grad)
    entries = latent_entries(grad, latents.values, by_latent, split=tiles.split)
    n_chunks = chunks_of(matrix, tiles=tiles)[1][-1]
    dots = grad.new_empty((n_chunks, by_latent.order.shape[0]), dtype=torch.float32)
    square = _gradient_adam_(entries, matrix, dots, None, step=step, tiles=tiles)
    return _sum_dots(dots, by_latent), square


def encoder_backward_adam_(
    grad_values: Tensor,
    x: Tensor,
    by_latent: LatentMajor,
    *,
    matrix: AdamMatrix,
    step: AdamStep,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor]:
    """`encoder_backward` and Adam in one pass over the encoder, whose gradient is never stored.

    Args:
        grad_values: Gradient with respect to the stored pre-activations.
        x: What was encoded `[batch, width]`, float32 or bfloat16.
        by_latent: The entries sorted by latent.
        matrix: The encoder and its moments, contiguous; updated in place.
        step: Numbers of the update.
        tiles: Sizes of one program; None for `tiles.backward_tiles`.

    Returns:
        Gradient of the encoder bias and the sum of squares of the rows' gradient, before `step.grad_scale`.
    """
    tiles = tiles or backward_tiles(x)
    entries = latent_entries(x, grad_values, by_latent, split=tiles.split)
    grad_b_enc = matrix.weight.new_empty(matrix.weight.shape[0])
    square = _gradient_adam_(entries, matrix, None, grad_b_enc, step=step, tiles=tiles)
    return grad_b_enc, square


def _gradient(
    entries: LatentEntries,
    weight: Tensor | None,
    dots: Tensor | None,
    bias_grad: Tensor | None,
    *,
    chunks: tuple[int, ...],
    tiles: Tiles,
) -> tuple[Tensor, Tensor]:
    """Gradient of the rows and its sum of squares; `dots` or `bias_grad` are written where given."""
    n_latents, width = entries.col_ptr.shape[0] - 1, entries.source.shape[1]
    grad = entries.partials.new_empty((n_latents, width))
    squares = entries.partials.new_empty((chunks[-1], n_latents))
    sizes = _constants((0, width), chunks, tiles=tiles)
    _split(entries, weight, dots, sizes=sizes)
    launch(
        _gradient_kernel,
        (n_latents, chunks[-1]),
        entries,
        weight,
        dots,
        grad,
        squares,
        bias_grad,
        entries.rows.shape[0],
        n_latents,
        width,
        **sizes,
    )
    return grad, squares.sum()


def _gradient_adam_(
    entries: LatentEntries,
    matrix: AdamMatrix,
    dots: Tensor | None,
    bias_grad: Tensor | None,
    *,
    step: AdamStep,
    tiles: Tiles,
) -> Tensor:
    """Update the rows; gives the sum of squares. `dots` or `bias_grad` are written where given."""
    n_latents, width = matrix.weight.shape
    boundaries, chunks = chunks_of(matrix, tiles=tiles)
    update = row_update(matrix, step, n_chunks=chunks[-1])
    squares = entries.partials.new_empty((chunks[-1], n_latents))
    sizes = _constants(boundaries, chunks, tiles=tiles)
    _split(entries, matrix.weight, dots, sizes=sizes)
    launch(
        _gradient_adam_kernel,
        (n_latents, chunks[-1]),
        entries,
        update,
        dots,
        squares,
        bias_grad,
        entries.rows.shape[0],
        n_latents,
        width,
        **sizes,
    )
    write_norms(matrix, update, first_chunks=chunks)
    return squares.sum()


def _constants(boundaries: tuple[int, ...], chunks: tuple[int, ...], *, tiles: Tiles) -> dict[str, Any]:
    return {
        "BOUNDARIES": boundaries,
        "FIRST_CHUNKS": chunks,
        "COLUMNS": tiles.columns,
        "ENTRIES": tiles.entries,
        "SPLIT": tiles.split,
        "num_warps": tiles.num_warps,
    }


def _split(
    entries: LatentEntries, weight: Tensor | None, dots: Tensor | None, *, sizes: dict[str, Any]
) -> None:
    """Sum the pieces of the latents with many entries; without `dots` the weights are not read."""
    launch(
        _split_kernel,
        (2 * entries.n_windows, sizes["FIRST_CHUNKS"][-1]),
        entries,
        weight if dots is not None else None,
        dots,
        entries.partials,
        entries.rows.shape[0],
        entries.source.shape[1],
        **sizes,
    )


def _sum_dots(dots: Tensor, by_latent: LatentMajor) -> Tensor:
    """Add up the chunks and put the entries back into row-major order."""
    n_chunks, n_entries = dots.shape
    out = dots.new_empty(n_entries)
    grid = (cdiv(n_entries, _DOTS_PER_PROGRAM),)
    launch(_sum_dots_kernel, grid, dots, by_latent.order, out, n_entries, n_chunks, ENTRIES=_DOTS_PER_PROGRAM)
    return out
