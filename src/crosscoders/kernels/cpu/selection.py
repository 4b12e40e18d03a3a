"""Exact selection on the CPU: a floor from block maxima, then only the few entries at or above it.

The `k` largest entries of a row lie in the blocks whose maximum reaches the k-th largest block maximum. So
one vectorized pass takes the maxima, and everything after it touches a few entries per row. Entries are
compared as integers: the bits of positive floats are ordered like the floats, negative ones lie below them.
"""

from typing import final

import numpy as np
import torch
from torch import Tensor

_INTEGER = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
_VALUE_BITS = {torch.int32: 31, torch.int16: 15}
_MAX_BLOCK = 32
# At this ratio of blocks to kept entries few blocks hold two of them.
_MIN_BLOCKS_PER_KEPT = 4


def row_topk_indices(scores: Tensor, k: int) -> Tensor:
    """Ascending flat indices that `reference.row_topk_mask` marks."""
    selector = RowTopK(k, n_latents=scores.shape[1])
    selector.add(scores.detach())
    return selector.finish()[0]


def batch_topk_indices(scores: Tensor, k: int) -> Tensor:
    """Ascending flat indices that `reference.batch_topk_mask` marks."""
    selector = BatchTopK(k * scores.shape[0], n_latents=scores.shape[1])
    selector.add(scores.detach())
    return selector.finish()[0]


def threshold_indices(scores: Tensor, threshold: Tensor) -> Tensor:
    """Ascending flat indices that `reference.threshold_mask` marks."""
    array = _as_numpy(scores)
    floor = np.maximum(_as_numpy(threshold), array.dtype.type(0))
    return torch.from_numpy(np.flatnonzero(array > floor))


@final
class RowTopK:
    """The largest positive scores of each row, for scores that come in groups of rows.

    Args:
        k: Entries to keep per row.
        n_latents: Entries in a row.
    """

    def __init__(self, k: int, *, n_latents: int) -> None:
        self._k = min(k, n_latents)
        self._n_latents = n_latents
        self._n_rows = 0
        self._kept: list[np.ndarray] = []
        self._scores: list[np.ndarray] = []

    def add(self, scores: Tensor) -> None:
        """Take the next rows; their memory may be reused afterwards."""
        scores = scores.contiguous()
        flat = self._select(scores)
        kept = _take(scores, flat)
        self._kept.append(flat + self._n_rows * self._n_latents)
        self._scores.append(kept)
        self._n_rows += scores.shape[0]

    def finish(self) -> tuple[Tensor, Tensor]:
        """Ascending flat indices of the kept entries, and their scores."""
        return _joined(self._kept), _joined(self._scores)

    def _select(self, scores: Tensor) -> np.ndarray:
        if self._k == 0 or scores.numel() == 0:
            return np.empty(0, dtype=np.int64)
        block = _block_size(scores, n_kept=self._k, n_of=self._n_latents)
        if block == 1:
            return _topk_by_partition(_without_nan(_as_numpy(scores)), self._k)
        n_key_bits = _VALUE_BITS[_INTEGER[scores.dtype]] + self._n_latents.bit_length()
        n_rows = 1 << max(0, min(16, 63 - n_key_bits))
        parts = [self._select_by_blocks(*_bits_and_maxima(p, block)) for p in scores.split(n_rows)]
        return np.concatenate([part + i * n_rows * self._n_latents for i, part in enumerate(parts)])

    def _select_by_blocks(self, bits: Tensor, maxima: np.ndarray) -> np.ndarray:
        floor = np.partition(maxima, -self._k, axis=1)[:, -self._k]
        floor = np.maximum(floor, 1)  # the smallest positive float
        row, latent, value = _entries_from(bits, maxima, floor=floor)
        shift, top = self._n_latents.bit_length(), (1 << _VALUE_BITS[bits.dtype]) - 1
        # By row, then by falling score, then by rising latent.
        key = (((row << _VALUE_BITS[bits.dtype]) | (top - value)) << shift) | latent
        key.sort()
        row = key >> (shift + _VALUE_BITS[bits.dtype])
        first_of_row = np.searchsorted(row, np.arange(bits.shape[0]))
        rank = np.arange(len(key)) - first_of_row[row]
        flat = (row * self._n_latents + (key & ((1 << shift) - 1)))[rank < self._k]
        flat.sort()
        return flat


@final
class BatchTopK:
    """The largest positive scores of a whole batch, for scores that come in groups of rows.

    The floor rises with every group: it is the `n_kept`-th largest block maximum so far, so no entry that
    belongs to the result is ever below it.

    Args:
        n_kept: Entries to keep in all.
        n_latents: Entries in a row.
        guess: Scores below this are not looked at; `is_short` tells when that was too high.
    """

    def __init__(self, n_kept: int, *, n_latents: int, guess: float = 0.0) -> None:
        self._n_kept = n_kept
        self._n_latents = n_latents
        self._guess = guess
        self._guess_bits = 1  # the smallest positive float
        self._n_rows = 0
        self._maxima = np.empty(0, dtype=np.int64)
        self._flat: list[np.ndarray] = []
        self._scores: list[np.ndarray] = []

    def add(self, scores: Tensor) -> None:
        """Take the next rows; their memory may be reused afterwards."""
        scores = scores.contiguous()
        flat = self._candidates(scores)
        self._flat.append(flat + self._n_rows * self._n_latents)
        self._scores.append(_take(scores, flat))
        self._n_rows += scores.shape[0]

    @property
    def is_short(self) -> bool:
        """Whether the guess hid entries that belong to the result: all has to be done again without it."""
        return self._guess > 0 and sum(map(len, self._flat)) < self._n_kept

    def finish(self) -> tuple[Tensor, Tensor]:
        """Ascending flat indices of the kept entries, and their scores."""
        flat, scores = np.concatenate(self._flat), np.concatenate(self._scores)
        order = np.argsort(flat)
        flat, scores = flat[order], scores[order]
        kept = _topk_by_partition(scores[None], self._n_kept)
        return torch.from_numpy(flat[kept]), torch.from_numpy(scores[kept])

    def _candidates(self, scores: Tensor) -> np.ndarray:
        if self._n_kept == 0 or scores.numel() == 0:
            return np.empty(0, dtype=np.int64)
        if scores.dtype not in _INTEGER:
            return np.flatnonzero(_as_numpy(scores) > 0)  # which NaN is not
        block = _block_size(scores, n_kept=self._n_kept, n_of=scores.numel())
        bits, maxima = _bits_and_maxima(scores, block)
        if self._guess > 0:
            self._guess_bits = int(torch.tensor(self._guess, dtype=scores.dtype).view(bits.dtype))
        self._raise_floor(maxima)
        row, latent, _ = _entries_from(bits, maxima, floor=np.array([self._floor()]))
        return row * self._n_latents + latent

    def _raise_floor(self, maxima: np.ndarray) -> None:
        new = maxima[maxima >= self._floor()]
        pool = np.concatenate([self._maxima.astype(new.dtype), new])
        if len(pool) > self._n_kept:
            pool = np.partition(pool, -self._n_kept)[-self._n_kept :]
        self._maxima = pool

    def _floor(self) -> int:
        lowest = int(self._maxima.min()) if len(self._maxima) == self._n_kept else 1
        return max(1, lowest, self._guess_bits)


def _block_size(scores: Tensor, *, n_kept: int, n_of: int) -> int:
    """Largest usable size of a block, or 1 where blocks do not pay."""
    if scores.dtype not in _INTEGER or n_kept == 0:
        return 1
    n_latents, block = scores.shape[1], _MAX_BLOCK
    while block > 1 and (n_latents % block or n_of < _MIN_BLOCKS_PER_KEPT * block * n_kept):
        block //= 2
    return block


def _bits_and_maxima(scores: Tensor, block: int) -> tuple[Tensor, np.ndarray]:
    """The scores as integers, with NaN as 0, and the maximum of each block."""
    bits = scores.view(_INTEGER[scores.dtype])
    maxima = _block_maxima(bits, block)
    infinity = int(torch.tensor(torch.inf, dtype=scores.dtype).view(bits.dtype))
    if maxima.max() > infinity:
        bits = bits.masked_fill(bits > infinity, 0)
        maxima = _block_maxima(bits, block)
    return bits, maxima


def _block_maxima(bits: Tensor, block: int) -> np.ndarray:
    n_rows, n_latents = bits.shape
    if _is_contiguous(bits):
        return bits.view(n_rows, n_latents // block, block).amax(dim=2).numpy()
    return bits.view(n_rows, block, n_latents // block).amax(dim=1).numpy()


def _is_contiguous(bits: Tensor) -> bool:
    """Whether a block is a run of neighbors; for two-byte scores the vectorized maximum needs every n-th."""
    return bits.dtype is torch.int32


def _entries_from(
    bits: Tensor, maxima: np.ndarray, *, floor: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, latent and integer value of the entries at or above the floor (of each row, or of all)."""
    n_rows, n_blocks = maxima.shape
    block = bits.shape[1] // n_blocks
    chosen = np.flatnonzero(maxima >= floor[:, None])
    row, column = np.divmod(chosen, n_blocks)
    if _is_contiguous(bits):
        entries = bits.view(-1, block).index_select(0, torch.from_numpy(chosen)).numpy()
    else:
        entries = bits.numpy().reshape(n_rows, block, n_blocks)[row, :, column]
    which, place = np.divmod(np.flatnonzero(entries >= np.broadcast_to(floor, n_rows)[row, None]), block)
    column = column[which]
    latent = column * block + place if _is_contiguous(bits) else place * n_blocks + column
    return row[which], latent, entries[which, place].astype(np.int64)


def _topk_by_partition(array: np.ndarray, k: int) -> np.ndarray:
    """Flat indices of the `k` largest positive entries of each row."""
    n_columns = array.shape[1]
    if k >= n_columns or array.shape[0] == 0:
        return np.flatnonzero(array > 0)
    smallest_kept = np.partition(array, n_columns - k, axis=1)[:, n_columns - k, None]
    at_least = array >= smallest_kept
    if np.count_nonzero(at_least) != k * array.shape[0] or smallest_kept.min() <= 0:
        at_least = _drop_surplus_ties(array, smallest_kept, k) & (array > 0)
    return np.flatnonzero(at_least)


def _drop_surplus_ties(array: np.ndarray, smallest_kept: np.ndarray, k: int) -> np.ndarray:
    above, tied = array > smallest_kept, array == smallest_kept
    room = k - np.count_nonzero(above, axis=1, keepdims=True)
    return above | (tied & (np.cumsum(tied, axis=1) <= room))


def _without_nan(scores: np.ndarray) -> np.ndarray:
    """The scores, with NaN below everything, so that it takes nobody's place."""
    is_nan = np.isnan(scores)
    return np.where(is_nan, -np.inf, scores) if is_nan.any() else scores


def _take(scores: Tensor, flat: np.ndarray) -> np.ndarray:
    """The scores at these flat indices as floats, without converting the rest."""
    if scores.dtype is torch.bfloat16:
        bits = scores.view(torch.int16).numpy().reshape(-1)[flat]
        return (bits.astype(np.int32) << 16).view(np.float32)
    return scores.numpy().reshape(-1)[flat]


def _as_numpy(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()


def _joined(parts: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts) if len(parts) > 1 else parts[0])
