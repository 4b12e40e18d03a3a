"""Device code that finds the n-th largest of many keys from histograms of their digits, 8 bits at a time.

`histograms` holds 256 counts for each level. Level 0 counts the first digit of all positive keys, level 1 the
second digit of those whose first digit is the one sought, and so on. The digits found so far follow from the
levels before, so every program finds them for itself and nothing passes through the host.
"""

from typing import no_type_check

import triton
import triton.language as tl

from crosscoders.kernels.triton.selection_rows import read_block

# The least score moves little from one step to the next: so far below the last one, a bound nearly always
# holds, and lets in few more. Either way the result is the same.
_HINT_MARGIN = tl.constexpr(0.875)


@triton.jit
@no_type_check
def radix_prefix(histograms, n_kept, LEVELS: tl.constexpr):
    """First `LEVELS` digits of the `n_kept`-th largest key, and how many keys with these digits are kept.

    Where there are fewer positive keys, the prefix is -1 and the number is what is missing.
    """
    prefix = tl.program_id(0) * 0
    wanted = n_kept.to(tl.int64)
    for level in tl.static_range(LEVELS):
        counts = tl.load(histograms + level * 256 + tl.arange(0, 256))
        reached = tl.cumsum(counts, 0, reverse=True)  # keys with this digit or a larger one
        digit = tl.sum((reached >= wanted).to(tl.int32)) - 1
        prefix = tl.where(digit < 0, -1, prefix * 256 + digit)
        wanted -= tl.max(tl.where(reached < wanted, reached, 0))
    return prefix, wanted


@triton.jit
@no_type_check
def least_key(histograms, n_kept, LEVELS: tl.constexpr):
    """The `n_kept`-th largest key, and how many keys equal to it are kept.

    It is 0 where there are fewer positive keys; all that is not positive is equal to it.
    """
    prefix, wanted = radix_prefix(histograms, n_kept, LEVELS)
    return tl.maximum(prefix, 0) << (32 - 8 * LEVELS), wanted


@triton.jit
@no_type_check
def count_digits(key, prefix, LEVEL: tl.constexpr):
    """Histogram of one digit of the positive keys that begin with `prefix`."""
    matches = key > 0
    if LEVEL > 0:
        matches = matches & ((key >> (32 - 8 * LEVEL)) == prefix)
    return tl.histogram((key >> (24 - 8 * LEVEL)) & 255, 256, mask=matches)


@triton.jit
@no_type_check
def add_counts(histograms, counts, LEVEL: tl.constexpr):
    """Add a program's counts to the histogram of one level."""
    place = histograms + LEVEL * 256 + tl.arange(0, 256)
    tl.atomic_add(place, counts.to(tl.int64), mask=counts > 0, sem="relaxed")


@triton.jit
@no_type_check
def add_source(histograms, source, prefix, LEVEL: tl.constexpr, BLOCK: tl.constexpr):
    """Add all keys of a source to the histogram of one level."""
    counts = tl.zeros((256,), tl.int32)
    for start in range(0, source[4], BLOCK):
        key, _ = read_block(source, start, BLOCK)
        counts += count_digits(key, prefix, LEVEL)
    add_counts(histograms, counts, LEVEL)


@triton.jit
@no_type_check
def hinted_key(floor):
    """Key somewhat below the hint; 0 where the hint is not a positive number."""
    bound = tl.load(floor) * _HINT_MARGIN
    return tl.where(bound > 0, bound.to(tl.int32, bitcast=True), 0)


@triton.jit
@no_type_check
def hint_serves(n_hinted, n_kept):
    """Whether enough maxima reach the hint for a bound, and no more than twice as many as are needed."""
    reached = tl.sum(tl.load(n_hinted + tl.arange(0, 256)))
    return (reached >= n_kept) & (reached <= 2 * n_kept.to(tl.int64))


@triton.jit
@no_type_check
def bound_of_batch(histograms, floor, n_hinted, n_kept, LEVELS: tl.constexpr):
    """A positive key that `n_kept` maxima reach, or all positive ones if they are fewer."""
    bound, _ = least_key(histograms, n_kept, LEVELS)
    if floor is not None:
        bound = tl.where(hint_serves(n_hinted, n_kept), hinted_key(floor), bound)
    return tl.maximum(bound, 1)
