"""How kernels are launched, and the sizes of the programs that select."""

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


_MOST_BY_GROUPS = 2048  # four times as many groups are the most that a program's registers hold


@final
@dataclass(frozen=True, kw_only=True)
class SelectionSizes:
    """Sizes of the selection kernels; powers of two. They change the speed, never the result.

    Args:
        groups: Groups into which a row is dealt; the k-th largest of their maxima bounds the k-th score. 0
            reads the rows in full every time instead.
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


def selection_sizes(n_latents: int, k: int, *, most: int) -> SelectionSizes:
    """Sizes for rows of `n_latents` of which about `k` are kept, and rarely more than `most`.

    Ten groups for each entry kept put about 5 % more candidates above the bound than are kept, where large
    scores do not crowd together. A thread takes 64 latents at once for the maxima and 4 elsewhere: compiled
    for sm_90 with triton 3.7.1, that is 64 registers a thread (bfloat16, `k <= 256`), eight programs on each
    multiprocessor, and no spills. Derived from these rules, not yet measured.

    Args:
        n_latents: Width of a row.
        k: Entries to keep in a row, on average.
        most: Candidates that nearly every row has room for.

    Returns:
        The sizes.
    """
    if k > _MOST_BY_GROUPS:
        return SelectionSizes(groups=0, run=1, capacity=1, block=2048, num_warps=8)
    groups = min(triton.next_power_of_2(max(4 * k, 1024)), triton.next_power_of_2(n_latents))
    num_warps = min(16, max(4, groups // 256))
    longest_run = 64 * 32 * num_warps // groups
    run = min(longest_run, 8, max(1, triton.next_power_of_2(n_latents // groups + 1) // 2))
    capacity = triton.next_power_of_2(max(most, 64))
    return SelectionSizes(
        groups=groups, run=run, capacity=capacity, block=4 * 32 * num_warps, num_warps=num_warps
    )


def threshold_sizes(n_words: int) -> dict[str, int]:
    """Sizes for rows of `n_words * 32` latents: 64 latents for each thread, as for the maxima above.

    Args:
        n_words: Words of 32 bits, one bit for each latent.

    Returns:
        Arguments of the launch.
    """
    return {"WORDS": min(256, triton.next_power_of_2(n_words)), "num_warps": 4}
