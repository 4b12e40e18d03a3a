"""How kernels are launched, and the sizes of the programs that select."""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor


def cdiv(n: int, by: int) -> int:
    """`n / by`, rounded up."""
    return -(-n // by)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is not below a positive number."""
    return 1 << (n - 1).bit_length()


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
        part: Groups whose maxima one program takes.
        run: Neighboring latents that go to the same group.
        capacity: Candidates that a row can store; a row with more is read in full again.
        block: Latents taken at once where a row is read in full.
        items: Maxima, or counts of rows, taken at once where the rows they belong to do not matter.
        num_warps: Warps of a program.
    """

    groups: int
    part: int
    run: int
    capacity: int
    block: int
    items: int
    num_warps: int


def row_topk_sizes(n_latents: int, k: int, *, itemsize: int) -> SelectionSizes:
    """Sizes for keeping `k` of each row.

    Ten groups for each entry kept: of 32,768 normal or skewed scores and k = 100, a simulation reads 106
    groups again and finds 112 candidates. The row is still in the second-level cache then, so a run is as
    long as one 16-byte load. Compiled for sm_90 with triton 3.7.1, bfloat16 and `k <= 256` take 64
    registers a thread, 116 with a scale: eight programs on each multiprocessor, or four. Derived from these
    rules, not yet measured.

    Args:
        n_latents: Width of a row.
        k: Entries to keep in a row.
        itemsize: Bytes of a pre-activation.

    Returns:
        The sizes.
    """
    if k > _MOST_BY_GROUPS:
        return _WITHOUT_GROUPS
    groups = _group_count(n_latents, k)
    num_warps = min(16, max(4, groups // 256))
    return SelectionSizes(
        groups=groups,
        part=groups,
        run=min(16 // itemsize, 64 * 32 * num_warps // groups, _floor_to_power_of_2(n_latents // groups)),
        capacity=next_power_of_2(max(2 * k, 64)),
        block=4 * 32 * num_warps,
        items=1024,
        num_warps=num_warps,
    )


def batch_topk_sizes(n_latents: int, k: int, *, itemsize: int) -> SelectionSizes:
    """Sizes for keeping `k` of a row on average.

    By the time that candidates are collected, the caches hold other rows, so a run is the 64 bytes that
    memory gives at once. Rows keep more or fewer than `k`: there is room for eight times as many. A thread
    takes 32 latents at once for the maxima and 4 elsewhere. Derived from these rules, not yet measured.

    Args:
        n_latents: Width of a row.
        k: Entries to keep in a row, on average.
        itemsize: Bytes of a pre-activation.

    Returns:
        The sizes.
    """
    if k > _MOST_BY_GROUPS:
        return _WITHOUT_GROUPS
    groups = _group_count(n_latents, k)
    num_warps = min(16, max(4, groups // 512))
    run = min(64 // itemsize, _floor_to_power_of_2(n_latents // groups))
    return SelectionSizes(
        groups=groups,
        part=min(groups, 32 * 32 * num_warps // run),
        run=run,
        capacity=next_power_of_2(max(8 * k, 64)),
        block=4 * 32 * num_warps,
        items=1024,
        num_warps=num_warps,
    )


def threshold_sizes(n_words: int) -> dict[str, int]:
    """Sizes for rows of `n_words` words of 32 latents: 32 latents a thread; not yet measured.

    Args:
        n_words: Words of 32 bits, one bit for each latent.

    Returns:
        Arguments of the launch.
    """
    return {"WORDS": min(128, next_power_of_2(n_words)), "num_warps": 4}


_WITHOUT_GROUPS = SelectionSizes(groups=0, part=1, run=1, capacity=1, block=2048, items=1024, num_warps=8)


def _group_count(n_latents: int, k: int) -> int:
    return min(next_power_of_2(max(4 * k, 1024)), next_power_of_2(n_latents))


def _floor_to_power_of_2(n: int) -> int:
    return max(1, next_power_of_2(n + 1) // 2)
