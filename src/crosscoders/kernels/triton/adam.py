"""Adam on the rows of a matrix in one pass: moments, weights, bfloat16 copy and row norms.

`update_columns` is also the last part of the fused backward kernels (`backward.py`), which form the gradient
in registers. No program works on columns of two sources, so each sum of squares belongs to one norm; a second
kernel adds up the few sums of each row and source.
"""

import itertools
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from crosscoders.kernels.adam import AdamMatrix, AdamStep
from crosscoders.kernels.triton.gather import chunk_columns
from crosscoders.kernels.triton.launch import cdiv, launch
from crosscoders.kernels.triton.tiles import Tiles, adam_tiles

_LATENTS_PER_PROGRAM = 128


class RowUpdate(NamedTuple):
    """`AdamMatrix` and `AdamStep` as kernels read them; the scalars come from float64.

    Args:
        weight: Weights, updated in place like the moments.
        exp_avg: First moment.
        exp_avg_sq: Second moment.
        shadow: bfloat16 copy of the weights, or None.
        squares: Workspace `[chunk, latent]` for sums of squares of the new rows; None without norms.
        grad_scale: Factor of the gradient, or None.
        skip: Nothing but workspaces is written where it is set; None for never.
        step_size: `lr / (1 - beta1^n)`.
        beta1: Decay rate of the first moment.
        rate1: `1 - beta1`.
        beta2: Decay rate of the second moment.
        rate2: `1 - beta2`.
        root_scale: `1 / sqrt(1 - beta2^n)`.
        eps: Added to the scaled root.
    """

    weight: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    shadow: Tensor | None
    squares: Tensor | None
    grad_scale: Tensor | None
    skip: Tensor | None
    step_size: float
    beta1: float
    rate1: float
    beta2: float
    rate2: float
    root_scale: float
    eps: float


@triton.jit
@no_type_check
def update_columns(update, weight, grad, latent, chunk, columns, stop, n_latents, width):
    """Adam on one row's chunk of columns; `weight` and `grad` are in registers, zero where `columns >= stop`.

    `m = beta1 m + rate1 g; v = beta2 v + rate2 g^2; w -= step_size m / (root_scale sqrt(v) + eps)`.
    """
    place = latent * width + columns
    in_width = columns < stop
    mean = tl.load(update.exp_avg + place, mask=in_width, other=0.0, eviction_policy="evict_first")
    # 1 beyond the last column: the new weight is 0 there whatever eps is.
    variance = tl.load(update.exp_avg_sq + place, mask=in_width, other=1.0, eviction_policy="evict_first")
    if update.grad_scale is not None:
        grad = grad * tl.load(update.grad_scale)
    mean = update.beta1 * mean + update.rate1 * grad
    variance = update.beta2 * variance + update.rate2 * grad * grad
    new = weight - update.step_size * mean / (update.root_scale * tl.sqrt(variance) + update.eps)
    if update.squares is not None:
        square = tl.sum(new * new, 0)
        tl.store(update.squares + chunk.to(tl.int64) * n_latents + latent, square)
    if update.skip is not None:
        stop = tl.where(tl.load(update.skip) == 0, stop, 0)
    writes = columns < stop
    tl.store(update.exp_avg + place, mean, mask=writes, eviction_policy="evict_first")
    tl.store(update.exp_avg_sq + place, variance, mask=writes, eviction_policy="evict_first")
    tl.store(update.weight + place, new, mask=writes, eviction_policy="evict_first")
    if update.shadow is not None:
        tl.store(update.shadow + place, new, mask=writes, eviction_policy="evict_first")


@triton.jit
@no_type_check
def _adam_kernel(
    update,
    grad,
    n_latents,
    width,
    BOUNDARIES: tl.constexpr,
    FIRST_CHUNKS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    latent = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    columns, stop = chunk_columns(chunk, BOUNDARIES, FIRST_CHUNKS, COLUMNS)
    place = latent * width + columns
    weight = tl.load(update.weight + place, mask=columns < stop, other=0.0, eviction_policy="evict_first")
    gradient = tl.load(grad + place, mask=columns < stop, other=0.0, eviction_policy="evict_first")
    update_columns(update, weight, gradient.to(tl.float32), latent, chunk, columns, stop, n_latents, width)


@triton.jit
@no_type_check
def _norms_kernel(squares, norms, skip, n_latents, FIRST_CHUNKS: tl.constexpr, LATENTS: tl.constexpr):
    latent = tl.program_id(0).to(tl.int64) * LATENTS + tl.arange(0, LATENTS)
    in_range = latent < n_latents
    last = n_latents
    if skip is not None:
        last = tl.where(tl.load(skip) == 0, n_latents, 0)
    part = squares + latent
    for source in tl.static_range(len(FIRST_CHUNKS) - 1):
        total = tl.zeros((LATENTS,), tl.float32)
        for _ in range(FIRST_CHUNKS[source], FIRST_CHUNKS[source + 1]):
            total += tl.load(part, mask=in_range, other=0.0)
            part += n_latents
        place = latent * (len(FIRST_CHUNKS) - 1) + source
        tl.store(norms + place, tl.sqrt(total), mask=latent < last)


def adam_rows_(matrix: AdamMatrix, grad: Tensor, *, step: AdamStep, tiles: Tiles | None = None) -> None:
    """Update a weight matrix and all that is derived from it, in place; see `AdamStep` for the formula.

    Args:
        matrix: The weights and their moments, contiguous.
        grad: Gradient `[latent, width]`, before `step.grad_scale`.
        step: Numbers of the update.
        tiles: Sizes of one program; None for `tiles.adam_tiles`.
    """
    n_latents, width = matrix.weight.shape
    tiles = tiles or adam_tiles(width)
    boundaries, first_chunks = chunks_of(matrix, tiles=tiles)
    update = row_update(matrix, step, n_chunks=first_chunks[-1])
    launch(
        _adam_kernel,
        (n_latents, first_chunks[-1]),
        update,
        grad.contiguous(),
        n_latents,
        width,
        BOUNDARIES=boundaries,
        FIRST_CHUNKS=first_chunks,
        COLUMNS=tiles.columns,
        num_warps=tiles.num_warps,
    )
    write_norms(matrix, update, first_chunks=first_chunks)


def chunks_of(matrix: AdamMatrix, *, tiles: Tiles) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cut a matrix into chunks of columns; where norms are written, each source starts a new chunk.

    Args:
        matrix: The matrix.
        tiles: Sizes of one program.

    Returns:
        First column of each source and the width, as one source where norms are not written; first chunk of
        each of these and the number of chunks.
    """
    boundaries = (0, matrix.weight.shape[1]) if matrix.norms is None else matrix.boundaries
    return boundaries, first_chunks(boundaries, columns=tiles.columns)


def first_chunks(boundaries: tuple[int, ...], *, columns: int) -> tuple[int, ...]:
    """First chunk of each source, and the number of chunks.

    Args:
        boundaries: First column of each source, and the width.
        columns: Largest number of columns of a chunk.

    Returns:
        One number more than there are sources.
    """
    counts = (cdiv(stop - start, columns) for start, stop in itertools.pairwise(boundaries))
    return tuple(itertools.accumulate(counts, initial=0))


def row_update(matrix: AdamMatrix, step: AdamStep, *, n_chunks: int) -> RowUpdate:
    """Put an update into the form that kernels read.

    Args:
        matrix: The weights and their moments, contiguous.
        step: Numbers of the update.
        n_chunks: Number of chunks of columns.

    Returns:
        Tensors and scalars, and a workspace for norms where they are asked for.
    """
    written = (matrix.weight, matrix.exp_avg, matrix.exp_avg_sq, matrix.shadow, matrix.norms)
    assert all(tensor is None or tensor.is_contiguous() for tensor in written)
    squares = None
    if matrix.norms is not None:
        squares = matrix.weight.new_empty((n_chunks, matrix.weight.shape[0]))
    skip = step.skip
    return RowUpdate(
        weight=matrix.weight,
        exp_avg=matrix.exp_avg,
        exp_avg_sq=matrix.exp_avg_sq,
        shadow=matrix.shadow,
        squares=squares,
        grad_scale=step.grad_scale,
        # Kernels cannot point at booleans; the bytes are the same.
        skip=skip.view(torch.uint8) if skip is not None and skip.dtype == torch.bool else skip,
        step_size=step.lr / (1 - step.beta1**step.n),
        beta1=step.beta1,
        rate1=1 - step.beta1,
        beta2=step.beta2,
        rate2=1 - step.beta2,
        root_scale=(1 - step.beta2**step.n) ** -0.5,
        eps=step.eps,
    )


def write_norms(matrix: AdamMatrix, update: RowUpdate, *, first_chunks: tuple[int, ...]) -> None:
    """Add up the sums of squares that the chunks left, if norms are asked for.

    Args:
        matrix: The matrix that was updated.
        update: Its update.
        first_chunks: First chunk of each source, and the number of chunks.
    """
    if matrix.norms is None:
        return
    n_latents = matrix.weight.shape[0]
    launch(
        _norms_kernel,
        (cdiv(n_latents, _LATENTS_PER_PROGRAM),),
        update.squares,
        matrix.norms,
        update.skip,
        n_latents,
        FIRST_CHUNKS=first_chunks,
        LATENTS=_LATENTS_PER_PROGRAM,
        num_warps=4,
    )
