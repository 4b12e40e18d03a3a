"""The `k` largest scores of each row, one program for one row."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.kernels.triton.launch import SelectionSizes, launch, row_topk_sizes
from crosscoders.kernels.triton.selection_checks import check_k, check_pre_acts, free_bits
from crosscoders.kernels.triton.selection_rows import (
    bound_of_groups,
    bracket,
    collect,
    emit,
    group_maxima,
    list_groups,
)


@triton.jit(do_not_specialize=["k"])
@no_type_check
def row_topk_kernel(
    pre,
    scale,
    values,
    indices,
    groups,
    keys,
    columns,
    n_latents,
    row_stride,
    k,
    GROUPS: tl.constexpr,
    RUN: tl.constexpr,
    CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr,
    RESOLUTION: tl.constexpr,
):
    """One row: bound the k-th key by the maxima of groups, list the candidates, keep `k` of them.

    A row with more candidates than fit, or with fewer than `k` positive scores, is read in full instead.
    """
    row = tl.program_id(0).to(tl.int64)
    pre += row * row_stride
    values += row * k
    indices += row * k
    keys += row * CAPACITY
    columns += row * CAPACITY
    found = k * 0 + CAPACITY + 1
    bound = k * 0 + 1
    if GROUPS > 0:
        groups += row * GROUPS
        largest = group_maxima(pre, scale, n_latents, 0, GROUPS, GROUPS, RUN)
        bound = bound_of_groups(largest, k, RESOLUTION)
        n_groups = list_groups(largest, bound, groups, GROUPS)
        tl.debug_barrier()  # other threads of this program read the list
        found = collect(
            pre, scale, n_latents, groups, n_groups, bound, keys, columns, GROUPS, RUN, CAPACITY, BLOCK
        )
        tl.debug_barrier()
    if (found >= k) & (found <= CAPACITY):
        candidates = (pre, scale, keys, columns, found)
        low, high, n_ties = bracket(candidates, k, bound, RESOLUTION, BLOCK)
        emit(candidates, low, high, n_ties, values, indices, BLOCK)
    else:
        whole_row = (pre, scale, None, None, n_latents)
        low = bound * 0
        high = bound * 0 + 1
        n_ties = k - found
        if found > CAPACITY:
            low, high, n_ties = bracket(whole_row, k, bound, RESOLUTION, BLOCK)
        emit(whole_row, low, high, n_ties, values, indices, BLOCK)


def row_topk(
    pre: Tensor, k: int, *, scale: Tensor | None, sizes: SelectionSizes | None = None
) -> SparseLatents:
    """The `k` largest scores of each row, `score = relu(pre) * scale`; see `reference.row_topk_mask`.

    Reads each row once from memory, and again the runs of neighbors that may hold one of the `k`: about a
    tenth of it. Nothing is atomic and nothing waits for the host.

    Args:
        pre: Pre-activations `[batch, latent]`, float32, bfloat16 or float16; rows contiguous.
        k: Entries to keep in a row.
        scale: Factor `[latent]` of each latent in the ranking, float32; None for 1.
        sizes: Sizes of a program; chosen by `launch.row_topk_sizes` if None.

    Returns:
        Exactly `k` entries a row, with the pre-activations as float32 values. Where fewer scores are
        positive, the first other latents of the row fill up, with the value 0.

    Raises:
        ValueError: `k` is not between 1 and the number of latents, or a tensor has the wrong type or layout.
    """
    check_pre_acts("row_topk", pre, scale)
    check_k("row_topk", pre, k)
    n_rows, n_latents = pre.shape
    sizes = sizes or row_topk_sizes(n_latents, k, itemsize=pre.element_size())
    values = pre.new_empty(n_rows * k, dtype=torch.float32)
    indices = pre.new_empty(n_rows * k, dtype=torch.int64)
    workspace = [
        pre.new_empty((n_rows, n), dtype=torch.int32) for n in (sizes.groups, sizes.capacity, sizes.capacity)
    ]
    launch(
        row_topk_kernel,
        (n_rows,),
        pre,
        scale,
        values,
        indices,
        *workspace,
        n_latents,
        pre.stride(0),
        k,
        GROUPS=sizes.groups,
        RUN=sizes.run,
        CAPACITY=sizes.capacity,
        BLOCK=sizes.block,
        RESOLUTION=1 << free_bits(pre, scale),
        num_warps=sizes.num_warps,
    )
    row_ptr = torch.arange(0, n_rows * k + 1, k, device=pre.device)
    return SparseLatents(values=values, indices=indices, row_ptr=row_ptr, n_latents=n_latents)
