"""The `k * batch` largest scores of a batch: their least key by radix selection, nothing is sorted.

The steps, each one launch (B rows, one program for a row unless said otherwise):

1. maxima of the groups of each row: the one full read of the pre-activations;
2. a bound: the `k * B`-th largest maximum, to 16 bits, from two histograms of digits (skipped where the hint
   serves). At least `k * B` scores reach it, since every maximum is one of them;
3. the candidates: all latents that reach the bound, from the groups whose maximum does;
4. the exact least key, from one histogram of digits for every 8 bits;
5. counts for each row, offsets (one program), and the entries themselves.

Counts are integers, so the order in which programs add to a histogram cannot change it. A row with more
candidates than it can store takes part with all its latents instead: slower, and the same result.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.kernels.triton.launch import SelectionSizes, batch_topk_sizes, cdiv, launch
from crosscoders.kernels.triton.selection_batch_kernels import (
    bound_kernel,
    collect_kernel,
    count_kernel,
    digit_kernel,
    maxima_kernel,
    offsets_kernel,
    write_kernel,
)
from crosscoders.kernels.triton.selection_checks import check_k, check_pre_acts, free_bits

_BOUND_LEVELS = 2  # digits of 8 bits of the bound of step 2


@final
@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch and the candidates of its rows.

    Args:
        pre: Pre-activations.
        scale: Factor of each latent, or None.
        n_kept: Entries to keep.
        sizes: Sizes of a program.
        keys: Keys of the candidates, `[batch, capacity]`.
        columns: Their latents.
        found: Number of candidates of each row; more than the capacity where they could not be stored.
    """

    pre: Tensor
    scale: Tensor | None
    n_kept: int
    sizes: SelectionSizes
    keys: Tensor
    columns: Tensor
    found: Tensor

    def run(self, kernel: Any, *args: Any, n_parts: int = 1, **kwargs: Any) -> None:
        """Launch `n_parts` programs for each row, with what all of them read."""
        launch(
            kernel,
            (self.pre.shape[0], n_parts),
            self.pre,
            self.scale,
            *args,
            n_latents=self.pre.shape[1],
            row_stride=self.pre.stride(0),
            num_warps=self.sizes.num_warps,
            **kwargs,
        )


def batch_topk(
    pre: Tensor,
    k: int,
    *,
    scale: Tensor | None,
    floor: Tensor | None = None,
    sizes: SelectionSizes | None = None,
) -> tuple[SparseLatents, Tensor]:
    """The `k * batch` largest scores, `score = relu(pre) * scale`; see `reference.batch_topk_mask`.

    Reads the batch once from memory, and again the runs of neighbors that may hold one of the entries: a
    tenth of it, or so. Nothing waits for the host; the only atomic operations add integers.

    Args:
        pre: Pre-activations `[batch, latent]`, float32, bfloat16 or float16; rows contiguous.
        k: Mean number of entries to keep per row.
        scale: Factor `[latent]` of each latent in the ranking, float32; None for 1.
        floor: A guess at the smallest selected score, such as the last step's, float32; saves work where it
            is good and never changes the result.
        sizes: Sizes of a program; chosen by `launch.batch_topk_sizes` if None.

    Returns:
        Exactly `k * batch` entries, with the pre-activations as float32 values, and the smallest selected
        positive score, infinity if there is none. Where fewer scores are positive, the first other latents of
        the flattened batch fill up, with the value 0.

    Raises:
        ValueError: `k` is not between 1 and the number of latents, or a tensor has the wrong type or layout.
    """
    check_pre_acts("batch_topk", pre, scale)
    check_k("batch_topk", pre, k)
    sizes = sizes or batch_topk_sizes(pre.shape[1], k, itemsize=pre.element_size())
    batch = new_batch(pre, k, scale=scale, sizes=sizes)
    if batch.sizes.groups > 0:
        collect_candidates(batch, floor)
    counts, histograms = _count_candidates(batch)
    return _write(batch, counts, histograms)


def new_batch(pre: Tensor, k: int, *, scale: Tensor | None, sizes: SelectionSizes) -> Batch:
    """A batch none of whose candidates are known.

    Args:
        pre: Pre-activations.
        k: Mean number of entries to keep per row.
        scale: Factor of each latent, or None.
        sizes: Sizes of a program.

    Returns:
        The batch, with room for candidates.
    """
    n_rows = pre.shape[0]
    return Batch(
        pre=pre,
        scale=scale,
        n_kept=n_rows * k,
        sizes=sizes,
        keys=pre.new_empty((n_rows, sizes.capacity), dtype=torch.int32),
        columns=pre.new_empty((n_rows, sizes.capacity), dtype=torch.int32),
        found=pre.new_full((n_rows,), sizes.capacity + 1, dtype=torch.int32),
    )


def collect_candidates(batch: Batch, floor: Tensor | None) -> None:
    """Steps 1 to 3: find the candidates of each row.

    Args:
        batch: Where they are stored.
        floor: A guess at the smallest score to keep.
    """
    sizes = batch.sizes
    maxima = batch.found.new_empty((batch.pre.shape[0], sizes.groups))
    histograms = batch.pre.new_zeros((_BOUND_LEVELS + 1, 256), dtype=torch.int64)
    n_hinted = histograms[_BOUND_LEVELS]  # as many counters as there are bins, to be added up
    groups = {"GROUPS": sizes.groups, "RUN": sizes.run}
    n_parts = sizes.groups // sizes.part
    batch.run(maxima_kernel, maxima, floor, n_hinted, n_parts=n_parts, PART=sizes.part, **groups)
    for level in range(_BOUND_LEVELS):
        launch(
            bound_kernel,
            (cdiv(maxima.numel(), sizes.items),),
            maxima,
            histograms,
            floor,
            n_hinted,
            maxima.numel(),
            batch.n_kept,
            LEVEL=level,
            BLOCK=sizes.items,
            num_warps=4,
        )
    batch.run(
        collect_kernel,
        maxima,
        histograms,
        floor,
        n_hinted,
        batch.keys,
        batch.columns,
        batch.found,
        n_kept=batch.n_kept,
        CAPACITY=sizes.capacity,
        BLOCK=sizes.block,
        LEVELS=_BOUND_LEVELS,
        **groups,
    )


def _count_candidates(batch: Batch) -> tuple[Tensor, Tensor]:
    """Step 4 and the first part of step 5."""
    n_levels = cdiv(32 - free_bits(batch.pre, batch.scale), 8)
    histograms = batch.pre.new_zeros((n_levels, 256), dtype=torch.int64)
    counts = batch.found.new_empty((3, batch.pre.shape[0]))
    source = (batch.keys, batch.columns, batch.found, histograms)
    sizes = {"n_kept": batch.n_kept, "CAPACITY": batch.sizes.capacity, "BLOCK": batch.sizes.block}
    for level in range(n_levels):
        batch.run(digit_kernel, *source, LEVEL=level, **sizes)
    batch.run(count_kernel, *source, counts, LEVELS=n_levels, **sizes)
    return counts, histograms


def _write(batch: Batch, counts: Tensor, histograms: Tensor) -> tuple[SparseLatents, Tensor]:
    """The rest of step 5."""
    n_rows, n_latents = batch.pre.shape
    values = batch.pre.new_empty(batch.n_kept, dtype=torch.float32)
    indices = batch.pre.new_empty(batch.n_kept, dtype=torch.int64)
    row_ptr = indices.new_empty(n_rows + 1)
    n_ties, least = batch.found.new_empty(n_rows), batch.found.new_empty(())
    smallest = values.new_empty(())
    launch(
        offsets_kernel,
        (1,),
        counts,
        histograms,
        row_ptr,
        n_ties,
        least,
        smallest,
        n_rows,
        batch.n_kept,
        BLOCK=batch.sizes.items,
        LEVELS=histograms.shape[0],
        num_warps=4,
    )
    batch.run(
        write_kernel,
        batch.keys,
        batch.columns,
        batch.found,
        row_ptr,
        n_ties,
        least,
        values,
        indices,
        CAPACITY=batch.sizes.capacity,
        BLOCK=batch.sizes.block,
    )
    return SparseLatents(values=values, indices=indices, row_ptr=row_ptr, n_latents=n_latents), smallest
