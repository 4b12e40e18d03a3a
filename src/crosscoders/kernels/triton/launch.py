"""What every launch shares, and the sizes of the programs: one table for each family of kernels."""

from dataclasses import dataclass
from typing import Any, final

import torch
import triton
from torch import Tensor


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **kwargs: Any) -> None:
    """Run a kernel on the device of its tensors, which need not be the current one.

    Args:
        kernel: A `triton.jit` function.
        grid: Number of programs along each axis; nothing runs where one of them is 0.
        args: Arguments of the kernel.
        kwargs: Arguments by name, and options such as `num_warps`.
    """
    tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
    if 0 in grid:
        return
    with torch.cuda.device_of(tensors[0]):
        kernel[grid](*args, **kwargs)


# Selection


@final
@dataclass(frozen=True, kw_only=True)
class SelectionSizes:
    """Sizes of the selection kernels; powers of two. They change the speed, never the result.

    Args:
        groups: Groups into which a row is dealt; the k-th largest of their maxima bounds the k-th score. 0 reads
            the rows in full every time instead.
        run: Neighboring latents that go to the same group.
        capacity: Candidates that a row can store; a row with more is read in full again.
        block: Latents taken at once where a row is read in full; at least `run`.
        num_warps: Warps of a program.
    """

    groups: int
    run: int
    capacity: int
    block: int
    num_warps: int


def selection_sizes(n_latents: int, k: int) -> SelectionSizes:
    """Sizes for rows of `n_latents` of which about `k` are kept.

    Ten groups for each entry kept put about 5 % more candidates above the bound than are kept, where large
    scores do not crowd together. 16 bfloat16 latents are one 32-byte sector, the least that a gather fetches.
    Derived from these two rules, not yet measured.

    Args:
        n_latents: Width of a row.
        k: Entries to keep in a row, on average.

    Returns:
        The sizes.
    """
    if k > 2048:  # the maxima of enough groups would no longer fit one program's registers
        return SelectionSizes(groups=0, run=1, capacity=1, block=2048, num_warps=8)
    groups = min(triton.next_power_of_2(max(4 * k, 1024)), triton.next_power_of_2(n_latents))
    run = min(16, max(1, triton.next_power_of_2(n_latents // groups + 1) // 2))
    capacity = triton.next_power_of_2(max(2 * k, 64))
    return SelectionSizes(groups=groups, run=run, capacity=capacity, block=2048, num_warps=8)
