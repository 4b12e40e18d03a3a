"""Device code of the selections: scores as integer keys, and rows read in full or through their candidates.

The bits of positive float32 numbers, read as integers, are in the order of the numbers. A *key* is those bits
where a score is positive, and 0 elsewhere, NaN included; counting keys is exact and needs no order.

A *source* `(pre, scale, keys, columns, length)` is what the keys of one row come from: its candidates, stored
at `keys` and `columns`, or all its latents at `pre` where these two are None. Candidates are the latents with
a key of at least some positive bound, in ascending order.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def score_keys(pre, scale, columns, mask):
    """Keys of `relu(pre) * scale` at some columns of the row that `pre` points at.

    The scale is the same for all rows: it stays in the first cache, which the rows themselves bypass.
    """
    value = tl.load(pre + columns, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
    score = value
    if scale is not None:
        score = value * tl.load(scale + columns, mask=mask, other=0.0, eviction_policy="evict_last")
    return tl.where((value > 0) & (score > 0), score.to(tl.int32, bitcast=True), 0)


@triton.jit
@no_type_check
def group_maxima(pre, scale, n_latents, first, GROUPS: tl.constexpr, PART: tl.constexpr, RUN: tl.constexpr):
    """Largest keys of `PART` groups of a row, from group `first` on.

    Each group in turn gets `RUN` neighbors, and so on again until the row ends.
    """
    tile = (first + tl.arange(0, PART)[:, None]) * RUN + tl.arange(0, RUN)[None, :]
    largest = tl.zeros((PART,), tl.int32)
    for start in range(0, n_latents, GROUPS * RUN):
        columns = start + tile
        keys = score_keys(pre, scale, columns, columns < n_latents)
        largest = tl.maximum(largest, tl.max(keys, 1))
    return largest


@triton.jit
@no_type_check
def bound_of_groups(largest, k, RESOLUTION: tl.constexpr):
    """A positive key that `k` maxima reach, or all positive ones if they are fewer, and hardly more do.

    At least as many latents reach it, since every maximum is one of them.
    """
    high = tl.max(largest) + 1
    low = high * 0 + 1
    count = tl.sum((largest >= low).to(tl.int32))
    while (count > k + k // 8) & (high - low > RESOLUTION):
        middle = low + (high - low) // 2
        reached = tl.sum((largest >= middle).to(tl.int32))
        low = tl.where(reached >= k, middle, low)
        high = tl.where(reached >= k, high, middle)
        count = tl.where(reached >= k, reached, count)
    return low


@triton.jit
@no_type_check
def list_groups(largest, bound, groups, GROUPS: tl.constexpr):
    """Write the groups whose maximum reaches the bound, ascending; returns their number."""
    active = (largest >= bound).to(tl.int32)
    place = tl.cumsum(active, 0) - 1
    tl.store(groups + place, tl.arange(0, GROUPS), mask=active > 0)
    return tl.sum(active)


@triton.jit
@no_type_check
def collect(
    pre,
    scale,
    n_latents,
    groups,
    n_groups,
    bound,
    keys,
    columns,
    GROUPS: tl.constexpr,
    RUN: tl.constexpr,
    CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the candidates that reach the bound from the listed groups; returns how many there are.

    No more than `CAPACITY` are written.
    """
    found = n_groups * 0
    for start in range(0, n_latents, GROUPS * RUN):
        for first in range(0, n_groups * RUN, BLOCK):
            member = first + tl.arange(0, BLOCK)
            listed = member < n_groups * RUN
            group = tl.load(groups + member // RUN, mask=listed, other=0)
            column = start + group * RUN + member % RUN
            key = score_keys(pre, scale, column, listed & (column < n_latents))
            reaches = (key >= bound).to(tl.int32)
            place = found + tl.cumsum(reaches, 0) - 1
            fits = (reaches > 0) & (place < CAPACITY)
            tl.store(keys + place, key, mask=fits)
            tl.store(columns + place, column, mask=fits)
            found += tl.sum(reaches)
    return found


@triton.jit
@no_type_check
def read_block(source, start, BLOCK: tl.constexpr):
    """Keys and columns of one block of a source; the key of what is not there is 0."""
    pre, scale, keys, columns, length = source
    place = start + tl.arange(0, BLOCK)
    inside = place < length
    if keys is not None:
        column = tl.load(columns + place, mask=inside, other=0)
        key = tl.load(keys + place, mask=inside, other=0)
    else:
        column = place
        key = score_keys(pre, scale, place, inside)
    return key, column


@triton.jit
@no_type_check
def count_reaching(source, bound, BLOCK: tl.constexpr):
    """How many keys of a source are at least `bound`, which is positive."""
    total = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, source[4], BLOCK):
        key, _ = read_block(source, start, BLOCK)
        total += (key >= bound).to(tl.int32)
    return tl.sum(total)


@triton.jit
@no_type_check
def largest_key(source, BLOCK: tl.constexpr):
    """The largest key of a source."""
    largest = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, source[4], BLOCK):
        key, _ = read_block(source, start, BLOCK)
        largest = tl.maximum(largest, key)
    return tl.max(largest)


@triton.jit
@no_type_check
def bracket(source, k, bound, RESOLUTION: tl.constexpr, BLOCK: tl.constexpr):
    """What to keep of a source: keys from `high` on, and the first `n_ties` of those in `[low, high)`.

    Bisection, until exactly `k` keys reach `low`, or until `[low, high)` has no room for two different keys.
    Where fewer than `k` reach `bound`, the interval holds the key 0: what is missing is filled up from there.
    """
    count = count_reaching(source, bound, BLOCK)
    low = tl.where(count >= k, bound, 0)
    high = tl.where(count >= k, largest_key(source, BLOCK) + 1, 1)
    while (count > k) & (high - low > RESOLUTION):
        middle = low + (high - low) // 2
        reached = count_reaching(source, middle, BLOCK)
        low = tl.where(reached >= k, middle, low)
        high = tl.where(reached >= k, high, middle)
        count = tl.where(reached >= k, reached, count)
    return low, high, k - count_reaching(source, high, BLOCK)


@triton.jit
@no_type_check
def emit(source, low, high, n_ties, values, indices, BLOCK: tl.constexpr):
    """Write the entries with keys from `high` on, and the first `n_ties` of those in `[low, high)`.

    There are that many. The value is the pre-activation, and 0 where the key is 0.
    """
    n_tied = low * 0
    n_kept = low * 0
    for start in range(0, source[4], BLOCK):
        key, column = read_block(source, start, BLOCK)
        tied = ((key >= low) & (key < high)).to(tl.int32)
        kept = (key >= high) | ((tied > 0) & (n_tied + tl.cumsum(tied, 0) <= n_ties))
        place = n_kept + tl.cumsum(kept.to(tl.int32), 0) - 1
        value = tl.load(source[0] + column, mask=kept & (key > 0), other=0.0).to(tl.float32)
        tl.store(values + place, value, mask=kept)
        tl.store(indices + place, column.to(tl.int64), mask=kept)
        n_tied += tl.sum(tied)
        n_kept += tl.sum(kept.to(tl.int32))
