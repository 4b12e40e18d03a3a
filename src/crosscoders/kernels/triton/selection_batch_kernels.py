"""The kernels of the selection from a whole batch; `selection_batch` says what each of them is for."""

from typing import no_type_check

import triton
import triton.language as tl

from crosscoders.kernels.triton.selection_radix import (
    add_counts,
    add_source,
    bound_of_batch,
    count_digits,
    hint_serves,
    hinted_key,
    least_key,
    radix_prefix,
)
from crosscoders.kernels.triton.selection_rows import collect, emit, group_maxima, list_groups, read_block

_INFINITY = tl.constexpr(0x7F800000)  # the key of infinity


@triton.jit
@no_type_check
def maxima_kernel(
    pre,
    scale,
    maxima,
    floor,
    n_hinted,
    n_latents,
    row_stride,
    GROUPS: tl.constexpr,
    PART: tl.constexpr,
    RUN: tl.constexpr,
):
    """Store the maxima of a part of one row's groups, and count those that reach the hint."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * PART
    largest = group_maxima(pre + row * row_stride, scale, n_latents, first, GROUPS, PART, RUN)
    tl.store(maxima + row * GROUPS + first + tl.arange(0, PART), largest)
    if floor is not None:
        reached = tl.sum((largest >= hinted_key(floor)).to(tl.int32))
        tl.atomic_add(n_hinted + row % 256, reached.to(tl.int64), sem="relaxed")


@triton.jit(do_not_specialize=["n_maxima", "n_kept"])
@no_type_check
def bound_kernel(
    maxima, histograms, floor, n_hinted, n_maxima, n_kept, LEVEL: tl.constexpr, BLOCK: tl.constexpr
):
    """Add a block of maxima, of any rows, to the histogram of one digit."""
    if floor is not None:  # noqa: SIM102 - known when compiling; the next is not
        if hint_serves(n_hinted, n_kept):
            return
    prefix, _ = radix_prefix(histograms, n_kept, LEVEL)
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(maxima + place, mask=place < n_maxima, other=0)
    add_counts(histograms, count_digits(key, prefix, LEVEL), LEVEL)


@triton.jit(do_not_specialize=["n_kept"])
@no_type_check
def collect_kernel(
    pre,
    scale,
    maxima,
    histograms,
    floor,
    n_hinted,
    keys,
    columns,
    found,
    n_latents,
    row_stride,
    n_kept,
    GROUPS: tl.constexpr,
    RUN: tl.constexpr,
    CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """Store the candidates of one row; the list of its groups takes the place of their maxima."""
    row = tl.program_id(0).to(tl.int64)
    pre += row * row_stride
    maxima += row * GROUPS
    keys += row * CAPACITY
    columns += row * CAPACITY
    bound = bound_of_batch(histograms, floor, n_hinted, n_kept, LEVELS)
    largest = tl.load(maxima + tl.arange(0, GROUPS))
    tl.debug_barrier()  # every thread has its maxima before the list overwrites them
    n_groups = list_groups(largest, bound, maxima, GROUPS)
    tl.debug_barrier()  # other threads of this program read the list
    n_found = collect(
        pre, scale, n_latents, maxima, n_groups, bound, keys, columns, GROUPS, RUN, CAPACITY, BLOCK
    )
    tl.store(found + row, n_found)


@triton.jit(do_not_specialize=["n_kept"])
@no_type_check
def digit_kernel(
    pre,
    scale,
    keys,
    columns,
    found,
    histograms,
    n_latents,
    row_stride,
    n_kept,
    CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr,
    LEVEL: tl.constexpr,
):
    """Add one row to the histogram of one digit."""
    row = tl.program_id(0).to(tl.int64)
    pre += row * row_stride
    n_found = tl.load(found + row)
    prefix, _ = radix_prefix(histograms, n_kept, LEVEL)
    if n_found <= CAPACITY:
        candidates = (pre, scale, keys + row * CAPACITY, columns + row * CAPACITY, n_found)
        add_source(histograms, candidates, prefix, LEVEL, BLOCK)
    else:
        add_source(histograms, (pre, scale, None, None, n_latents), prefix, LEVEL, BLOCK)


@triton.jit
@no_type_check
def _count(source, least, BLOCK: tl.constexpr):
    """How many keys of a source are above the least and equal to it, and the smallest positive one."""
    above = tl.zeros((BLOCK,), tl.int32)
    equal = tl.zeros((BLOCK,), tl.int32)
    smallest = tl.full((BLOCK,), _INFINITY, tl.int32)
    for start in range(0, source[4], BLOCK):
        key, _ = read_block(source, start, BLOCK)
        above += (key > least).to(tl.int32)
        equal += (key == least).to(tl.int32)
        smallest = tl.minimum(smallest, tl.where((key >= least) & (key > 0), key, _INFINITY))
    return tl.sum(above), tl.sum(equal), tl.min(smallest)


@triton.jit(do_not_specialize=["n_kept"])
@no_type_check
def count_kernel(
    pre,
    scale,
    keys,
    columns,
    found,
    histograms,
    counts,
    n_latents,
    row_stride,
    n_kept,
    CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """Store how many entries of one row are above the least key and equal to it, and its smallest entry."""
    row = tl.program_id(0).to(tl.int64)
    pre += row * row_stride
    n_found = tl.load(found + row)
    least, _ = least_key(histograms, n_kept, LEVELS)
    if n_found <= CAPACITY:
        candidates = (pre, scale, keys + row * CAPACITY, columns + row * CAPACITY, n_found)
        above, equal, smallest = _count(candidates, least, BLOCK)
    else:
        above, equal, smallest = _count((pre, scale, None, None, n_latents), least, BLOCK)
    equal = tl.where(least == 0, n_latents - above, equal)  # all that is not positive, candidate or not
    n_rows = tl.num_programs(0)
    tl.store(counts + row, above)
    tl.store(counts + n_rows + row, equal)
    tl.store(counts + 2 * n_rows + row, smallest)


@triton.jit(do_not_specialize=["n_rows", "n_kept"])
@no_type_check
def offsets_kernel(
    counts,
    histograms,
    row_ptr,
    n_ties,
    least_kept,
    smallest,
    n_rows,
    n_kept,
    BLOCK: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """Deal the entries equal to the least key to the first rows that have some; one program for all rows."""
    least, wanted = least_key(histograms, n_kept, LEVELS)
    n_equal = wanted * 0
    n_written = wanted * 0
    lowest = tl.full((BLOCK,), _INFINITY, tl.int32)
    tl.store(least_kept, least)
    tl.store(row_ptr, n_written)
    for start in range(0, n_rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        inside = row < n_rows
        above = tl.load(counts + row, mask=inside, other=0).to(tl.int64)
        equal = tl.load(counts + n_rows + row, mask=inside, other=0).to(tl.int64)
        before = n_equal + tl.cumsum(equal, 0) - equal
        ties = tl.minimum(tl.maximum(wanted - before, 0), equal)
        tl.store(n_ties + row, ties.to(tl.int32), mask=inside)
        tl.store(row_ptr + 1 + row, n_written + tl.cumsum(above + ties, 0), mask=inside)
        lowest = tl.minimum(lowest, tl.load(counts + 2 * n_rows + row, mask=inside, other=_INFINITY))
        n_equal += tl.sum(equal)
        n_written += tl.sum(above + ties)
    tl.store(smallest, tl.min(lowest).to(tl.float32, bitcast=True))


@triton.jit
@no_type_check
def write_kernel(
    pre,
    scale,
    keys,
    columns,
    found,
    row_ptr,
    n_ties,
    least_kept,
    values,
    indices,
    n_latents,
    row_stride,
    CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the entries of one row."""
    row = tl.program_id(0).to(tl.int64)
    pre += row * row_stride
    n_found = tl.load(found + row)
    ties = tl.load(n_ties + row)
    least = tl.load(least_kept)
    first = tl.load(row_ptr + row)
    if (n_found <= CAPACITY) & ((least > 0) | (ties == 0)):
        candidates = (pre, scale, keys + row * CAPACITY, columns + row * CAPACITY, n_found)
        emit(candidates, least, least + 1, ties, values + first, indices + first, BLOCK)
    else:
        whole_row = (pre, scale, None, None, n_latents)
        emit(whole_row, least, least + 1, ties, values + first, indices + first, BLOCK)
