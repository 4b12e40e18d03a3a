"""All scores above a threshold: one bit for each latent first, then the entries that the bits name."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.kernels.triton.launch import cdiv, launch, threshold_sizes
from crosscoders.kernels.triton.selection_checks import check_pre_acts, check_threshold

_BITS = tl.constexpr(32)


@triton.jit
@no_type_check
def mark_kernel(
    pre,
    scale,
    threshold,
    words,
    counts,
    n_latents,
    n_words,
    row_stride,
    WORDS: tl.constexpr,
    PER_LATENT: tl.constexpr,
):
    """One row: a word of bits for every 32 latents, and how many are set."""
    row = tl.program_id(0).to(tl.int64)
    pre += row * row_stride
    words += row * n_words
    total = tl.zeros((WORDS,), tl.int32)
    bit = tl.arange(0, _BITS)
    for first in range(0, n_words, WORDS):
        word = first + tl.arange(0, WORDS)
        column = word[:, None] * _BITS + bit[None, :]
        inside = column < n_latents
        value = tl.load(pre + column, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
        score = value
        if scale is not None:
            score = value * tl.load(scale + column, mask=inside, other=0.0, eviction_policy="evict_last")
        if PER_LATENT:
            level = tl.load(threshold + column, mask=inside, other=0.0, eviction_policy="evict_last")
        else:
            level = tl.load(threshold)
        is_kept = ((value > 0) & (score > 0) & (score > level)).to(tl.int32)
        tl.store(words + word, tl.sum(is_kept << bit[None, :], 1), mask=word < n_words)
        total += tl.sum(is_kept, 1)
    tl.store(counts + row, tl.sum(total))


@triton.jit
@no_type_check
def unpack_kernel(
    pre,
    words,
    row_ptr,
    values,
    indices,
    n_words,
    row_stride,
    WORDS: tl.constexpr,
):
    """One row: write the entries whose bits are set, each word's in turn from where it begins."""
    row = tl.program_id(0).to(tl.int64)
    pre += row * row_stride
    words += row * n_words
    n_written = tl.load(row_ptr + row)
    for first in range(0, n_words, WORDS):
        word = first + tl.arange(0, WORDS)
        bits = tl.load(words + word, mask=word < n_words, other=0)
        n_set = tl.zeros((WORDS,), tl.int32)
        for bit in tl.static_range(_BITS):
            n_set += (bits >> bit) & 1
        place = n_written + (tl.cumsum(n_set, 0) - n_set).to(tl.int64)
        for bit in tl.static_range(_BITS):
            is_set = (bits >> bit) & 1
            column = word * _BITS + bit
            value = tl.load(pre + column, mask=is_set > 0, other=0.0).to(tl.float32)
            tl.store(values + place, value, mask=is_set > 0)
            tl.store(indices + place, column.to(tl.int64), mask=is_set > 0)
            place += is_set
        n_written += tl.sum(n_set)


def threshold(
    pre: Tensor, threshold: Tensor, *, scale: Tensor | None, words: int | None = None
) -> SparseLatents:
    """The positive scores above a threshold, `score = relu(pre) * scale`; see `reference.threshold_mask`.

    Reads the batch once from memory, and again only where an entry is. Waits for the host once: the number of
    entries sizes the result.

    Args:
        pre: Pre-activations `[batch, latent]`, float32, bfloat16 or float16; rows contiguous.
        threshold: One threshold, or one per latent, float32.
        scale: Factor `[latent]` of each latent in the comparison, float32; None for 1.
        words: Words of 32 latents taken at once, a power of two; chosen by `launch.threshold_sizes` if None.

    Returns:
        The entries, with the pre-activations as float32 values.

    Raises:
        ValueError: A tensor has the wrong type, shape or layout.
    """
    check_pre_acts("threshold", pre, scale)
    check_threshold(pre, threshold)
    n_words = cdiv(pre.shape[1], 32)
    sizes = threshold_sizes(n_words) if words is None else {"WORDS": words, "num_warps": 1}
    marks, counts = mark(pre, threshold, scale=scale, sizes=sizes)
    row_ptr = torch.zeros(pre.shape[0] + 1, dtype=torch.int64, device=pre.device)
    torch.cumsum(counts, 0, out=row_ptr[1:])
    return unpack(pre, marks, row_ptr=row_ptr, nnz=int(row_ptr[-1]), sizes=sizes)


def mark(
    pre: Tensor, threshold: Tensor, *, scale: Tensor | None, sizes: dict[str, int]
) -> tuple[Tensor, Tensor]:
    """Bits of the entries above the threshold, and their number in each row.

    Args:
        pre: Pre-activations.
        threshold: One threshold, or one per latent.
        scale: Factor of each latent, or None.
        sizes: Sizes of a program.

    Returns:
        Words `[batch, ceil(latent / 32)]` and counts `[batch]`, int32.
    """
    n_rows, n_latents = pre.shape
    marks = pre.new_empty((n_rows, cdiv(n_latents, 32)), dtype=torch.int32)
    counts = pre.new_empty(n_rows, dtype=torch.int32)
    launch(
        mark_kernel,
        (n_rows,),
        pre,
        scale,
        threshold,
        marks,
        counts,
        n_latents,
        marks.shape[1],
        pre.stride(0),
        PER_LATENT=threshold.ndim == 1,
        **sizes,
    )
    return marks, counts


def unpack(pre: Tensor, marks: Tensor, *, row_ptr: Tensor, nnz: int, sizes: dict[str, int]) -> SparseLatents:
    """The marked entries.

    Args:
        pre: Pre-activations.
        marks: Words of `mark`.
        row_ptr: Where the entries of each row begin.
        nnz: Number of entries.
        sizes: Sizes of a program.

    Returns:
        Sparse latents with the pre-activations as float32 values.
    """
    values = pre.new_empty(nnz, dtype=torch.float32)
    indices = row_ptr.new_empty(nnz)
    arguments = (pre, marks, row_ptr, values, indices, marks.shape[1], pre.stride(0))
    launch(unpack_kernel, (pre.shape[0],), *arguments, **sizes)
    return SparseLatents(values=values, indices=indices, row_ptr=row_ptr, n_latents=pre.shape[1])
