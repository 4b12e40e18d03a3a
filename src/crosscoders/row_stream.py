"""`RowStream`: token batches in, the activation rows worth keeping out, in order and from any position."""

import hashlib
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from crosscoders.sources import Source, column_slices

_ROWS_AT_ONCE = 8192  # bounds the float32 copy that norms are computed on


@runtime_checkable
class SupportsHarvest(Protocol):
    """What harvesting needs: named sources, and their activations for a batch of tokens."""

    @property
    def sources(self) -> Sequence[Source]:
        """The sources in the order of their columns."""
        ...

    def harvest(self, tokens: Tensor) -> Tensor:
        """Raw activations [batch pos width] of token ids [batch pos]."""
        ...


@runtime_checkable
class SupportsExclusion(Protocol):
    """What a harvester has that knows ids whose rows must never be served."""

    @property
    def exclude_token_ids(self) -> Collection[int]:
        """The ids; their positions are read by the models and left out of the rows."""
        ...


def excluded_ids(harvester: SupportsHarvest, own: Collection[int]) -> tuple[int, ...]:
    """Ids whose rows are left out: those asked for, and those that the harvester itself excludes.

    Args:
        harvester: Sources and their activations.
        own: The ids asked for.
    """
    theirs = harvester.exclude_token_ids if isinstance(harvester, SupportsExclusion) else ()
    return tuple(sorted({*own, *theirs}))


class RowStream:
    """Kept activation rows of a run of token batches, read in order.

    A position is (token batch, kept row within it); reading can start at any position if the token batches
    can be iterated more than once.

    Args:
        harvester: Sources and their activations.
        token_batches: Token ids [batch pos].
        dtype: Dtype of the rows.
        exclude_token_ids: Positions with these ids are left out.
        skip_positions: Leading positions of each sequence that are left out.
        device: Where the rows go.

    Raises:
        ValueError: No token batches.
    """

    def __init__(
        self,
        harvester: SupportsHarvest,
        token_batches: Iterable[Tensor],
        *,
        dtype: torch.dtype,
        exclude_token_ids: Collection[int],
        skip_positions: int,
        device: torch.device,
    ) -> None:
        self.n_dropped = 0
        self._harvester = harvester
        self._dtype = dtype
        self._excluded = torch.tensor(sorted(exclude_token_ids), dtype=torch.int64)
        self._skip_positions = skip_positions
        self._device = device
        self._norm_limits: Tensor | None = None
        self._batches = token_batches
        self._iterator: Iterator[Tensor] = iter(token_batches)
        self.can_restart = self._iterator is not token_batches
        first = next(self._iterator, None)
        if first is None:
            raise ValueError("ActivationBuffer: token_batches is empty; there is nothing to harvest.")
        self.first_sha256 = _digest(first)
        sequence = self._sequence()
        self.largest_batch = first.numel() if sequence is None else max(tokens.numel() for tokens in sequence)
        self._iterator = itertools.chain([first], self._iterator)
        self._position: tuple[int, int] | None = (0, 0)
        self._pending: Tensor | None = None

    @property
    def position(self) -> tuple[int, int]:
        """(token batch, kept row in it) of the row that comes next."""
        assert self._position is not None  # `seek` sets it again after a failed harvest
        return self._position

    @property
    def pending_bytes(self) -> int:
        """Memory of the rows that were harvested but not taken yet."""
        return 0 if self._pending is None else self._pending.untyped_storage().nbytes()

    def n_rows(self) -> int | None:
        """Kept rows in all token batches, counted from the ids; None unless they are a sequence.

        Rows that norm limits would drop are counted too.
        """
        sequence = self._sequence()
        return None if sequence is None else sum(int(self._is_kept(tokens).sum()) for tokens in sequence)

    def seek(self, position: tuple[int, int]) -> None:
        """Make `position` the next row; a no-op where it already is.

        Args:
            position: (token batch, kept row in it).

        Raises:
            ValueError: The stream stands elsewhere and its token batches are a one-shot iterator.
        """
        if position == self._position:
            return
        if not self.can_restart:
            raise ValueError(
                "ActivationBuffer: token_batches is a one-shot iterator and cannot be read again; "
                "pass a list, or an object whose __iter__ starts anew."
            )
        first_batch, first_row = position
        sequence = self._sequence()
        if sequence is not None:
            self._iterator = (sequence[i] for i in range(first_batch, len(sequence)))
        else:
            self._iterator = itertools.islice(iter(self._batches), first_batch, None)
        self._pending, self._position = None, (first_batch, 0)
        if first_row:
            n_dropped = self.n_dropped
            self._read()
            self.n_dropped = n_dropped  # the batch was counted when it was first read
            self._skip(first_row)

    def take(self, n_rows: int) -> Tensor | None:
        """The next rows, at most `n_rows` and at least one; None at the end of the token batches.

        Args:
            n_rows: Most rows to return.
        """
        while self._pending is None or len(self._pending) == 0:
            if not self._read():
                return None
        rows = self._pending[:n_rows]
        self._skip(len(rows))
        return rows

    def limit_norms(self, limits: Sequence[float], *, n_taken: int | None = None) -> None:
        """Drop rows whose norm exceeds its source's limit from now on, the pending ones included.

        Args:
            limits: One norm per source.
            n_taken: Rows of the current token batch that were taken and stay kept; None if none were.
        """
        self._norm_limits = torch.tensor(limits, dtype=torch.float32)
        if self._pending is not None and n_taken is not None:
            self._pending = self._within_limits(self._pending)
            self._position = (self.position[0], n_taken)

    def source_norms(self, rows: Tensor) -> Tensor:
        """Euclidean norm of each row in each source, in float32.

        Args:
            rows: [batch width] rows of this stream.

        Returns:
            [batch source] norms.
        """
        columns = column_slices(self._harvester.sources).values()
        chunks = [
            torch.stack([chunk[:, c].float().norm(dim=1) for c in columns], dim=1).cpu()
            for chunk in rows.split(_ROWS_AT_ONCE)
        ]
        return torch.cat(chunks)

    def _sequence(self) -> Sequence[Tensor] | None:
        return self._batches if isinstance(self._batches, Sequence) else None

    def _skip(self, n_rows: int) -> None:
        assert self._pending is not None  # rows were read before they are skipped
        batch, row = self.position
        self._pending = self._pending[n_rows:]
        self._position = (batch, row + n_rows)
        if len(self._pending) == 0:
            self._pending, self._position = None, (batch + 1, 0)

    def _read(self) -> bool:
        """Harvest the next token batch into `_pending`; False at the end."""
        batch = self.position[0] + int(self._pending is not None)
        tokens = next(self._iterator, None)
        if tokens is None:
            return False
        self._pending, self._position = None, None  # stays unset if harvesting raises: the iterator has moved
        self._check(tokens, batch=batch)
        is_kept = self._is_kept(tokens)
        if is_kept.any():
            activations = self._harvester.harvest(tokens)
            rows = activations[is_kept.to(activations.device)].to(device=self._device, dtype=self._dtype)
            self._pending = self._within_limits(rows)
        self._position = (batch, 0) if self._pending is not None else (batch + 1, 0)
        return True

    def _check(self, tokens: Tensor, *, batch: int) -> None:
        if tokens.ndim != 2 or tokens.is_floating_point():
            raise ValueError(
                f"ActivationBuffer: token batch {batch} must be integer ids [batch, pos], got "
                f"{tokens.dtype} of shape {tuple(tokens.shape)}."
            )
        if tokens.numel() > self.largest_batch:
            raise ValueError(
                f"ActivationBuffer: token batch {batch} has {tokens.numel()} tokens, more than the first "
                f"one's {self.largest_batch} for which memory was set aside; pass a list, or the "
                "largest batch first."
            )

    def _is_kept(self, tokens: Tensor) -> Tensor:
        is_kept = ~torch.isin(tokens, self._excluded.to(tokens.device))
        is_kept[:, : self._skip_positions] = False
        return is_kept

    def _within_limits(self, rows: Tensor) -> Tensor:
        if self._norm_limits is None or len(rows) == 0:
            return rows
        is_within = (self.source_norms(rows) <= self._norm_limits).all(dim=1)
        self.n_dropped += int((~is_within).sum())
        return rows[is_within.to(rows.device)]


def _digest(tokens: Tensor) -> str:
    ids = tokens.detach().cpu().to(torch.int64).contiguous()
    return hashlib.sha256(repr(tuple(ids.shape)).encode() + ids.numpy().tobytes()).hexdigest()
