"""`RowStream`: the activation rows worth keeping, in order and from any position.

Rows come from a `RowOrigin`: harvested live (`LiveRows`) or read from disk (`crosscoders.store`). Norm limits
and positions are the stream's own, so that they are the same whatever the origin.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from crosscoders.sources import Source, column_slices, width
from crosscoders.token_batches import TokenBatches, one_shot_error

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


@runtime_checkable
class RowOrigin(Protocol):
    """Where rows come from: the kept rows of each token batch, before norm limits."""

    @property
    def sources(self) -> Sequence[Source]:
        """The sources in the order of their columns."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the rows."""
        ...

    @property
    def exclude_token_ids(self) -> tuple[int, ...]:
        """Positions with these ids are left out."""
        ...

    @property
    def skip_positions(self) -> int:
        """Leading positions of each sequence that are left out."""
        ...

    @property
    def can_restart(self) -> bool:
        """Whether rows can be read more than once."""
        ...

    @property
    def first_sha256(self) -> str:
        """SHA-256 of the first token batch, by which a stored position knows its data."""
        ...

    @property
    def largest_batch(self) -> int:
        """Most tokens that one token batch has."""
        ...

    def n_rows(self) -> int | None:
        """Rows of one pass; None if only running tells."""
        ...

    def rows_from(self, batch: int) -> Iterator[Tensor]:
        """Rows [batch width] of each token batch from one on, also of those without any."""
        ...


class LiveRows:
    """Rows that are harvested when they are asked for.

    Args:
        harvester: Sources and their activations.
        tokens: What is read.
        dtype: Dtype of the rows.
        device: Where the rows go.
    """

    def __init__(
        self, harvester: SupportsHarvest, tokens: TokenBatches, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.sources, self.dtype = tuple(harvester.sources), dtype
        self.exclude_token_ids, self.skip_positions = tokens.exclude_token_ids, tokens.skip_positions
        self.can_restart = tokens.can_restart
        self.first_sha256 = tokens.first_sha256
        self.largest_batch = tokens.largest_batch
        self.n_rows = tokens.n_rows
        self._harvester, self._tokens, self._device = harvester, tokens, device

    def rows_from(self, batch: int) -> Iterator[Tensor]:
        """Harvest token batches from one on.

        Args:
            batch: Index of the first.

        Yields:
            The kept rows [batch width] of each; batches without any are not harvested.
        """
        for tokens in self._tokens.read_from(batch):
            is_kept = self._tokens.is_kept(tokens)
            yield kept_rows(self._harvester, tokens, is_kept, dtype=self.dtype, device=self._device)


def kept_rows(
    harvester: SupportsHarvest,
    tokens: Tensor,
    is_kept: Tensor,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Harvest one token batch and keep some of its positions, in order.

    Args:
        harvester: Sources and their activations.
        tokens: Token ids [batch pos].
        is_kept: Which positions; if none, nothing is harvested.
        dtype: Dtype to which the rows are rounded.
        device: Where they go.

    Returns:
        Rows [batch width].
    """
    if not is_kept.any():
        return torch.empty(0, width(harvester.sources), dtype=dtype, device=device)
    activations = harvester.harvest(tokens)
    return activations[is_kept.to(activations.device)].to(device=device, dtype=dtype)


def row_norms(rows: Tensor, sources: Sequence[Source]) -> Tensor:
    """Euclidean norm of each row in each source, in float32.

    Args:
        rows: Rows [batch width].
        sources: Sources in the order of their columns.

    Returns:
        [batch source] norms in CPU memory.
    """
    columns = column_slices(sources).values()
    chunks = [
        torch.stack([chunk[:, c].float().norm(dim=1) for c in columns], dim=1).cpu()
        for chunk in rows.split(_ROWS_AT_ONCE)
    ]
    return torch.cat(chunks)


class RowStream:
    """Kept activation rows of a run of token batches, read in order.

    A position is (token batch, kept row within it); reading can start at any position if the origin can be
    read more than once.

    Args:
        origin: Where the rows come from.
    """

    def __init__(self, origin: RowOrigin) -> None:
        self.origin = origin
        self.n_dropped = 0
        self._norm_limits: Tensor | None = None
        self._iterator = origin.rows_from(0)
        self._position: tuple[int, int] | None = (0, 0)
        self._pending: Tensor | None = None

    @property
    def position(self) -> tuple[int, int]:
        """(token batch, kept row in it) of the row that comes next."""
        assert self._position is not None  # `seek` sets it again after a failed harvest
        return self._position

    @property
    def pending_bytes(self) -> int:
        """Memory of the rows that were read but not taken yet."""
        return 0 if self._pending is None else self._pending.untyped_storage().nbytes()

    def seek(self, position: tuple[int, int]) -> None:
        """Make `position` the next row; a no-op where it already is.

        Args:
            position: (token batch, kept row in it).

        Raises:
            ValueError: The stream stands elsewhere and its token batches are a one-shot iterator.
        """
        if position == self._position:
            return
        if not self.origin.can_restart:
            raise one_shot_error()
        first_batch, first_row = position
        self._iterator = self.origin.rows_from(first_batch)
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
        return row_norms(rows, self.origin.sources)

    def _skip(self, n_rows: int) -> None:
        assert self._pending is not None  # rows were read before they are skipped
        batch, row = self.position
        self._pending = self._pending[n_rows:]
        self._position = (batch, row + n_rows)
        if len(self._pending) == 0:
            self._pending, self._position = None, (batch + 1, 0)

    def _read(self) -> bool:
        """Read the next token batch's rows into `_pending`; False at the end."""
        before = self._position, self._pending
        batch = self.position[0] + int(self._pending is not None)
        self._pending, self._position = None, None  # stays unset if reading raises: the iterator has moved
        rows = next(self._iterator, None)
        if rows is None:
            self._position, self._pending = before
            return False
        if len(rows):
            self._pending = self._within_limits(rows)
        self._position = (batch, 0) if self._pending is not None else (batch + 1, 0)
        return True

    def _within_limits(self, rows: Tensor) -> Tensor:
        if self._norm_limits is None or len(rows) == 0:
            return rows
        is_within = (self.source_norms(rows) <= self._norm_limits).all(dim=1)
        self.n_dropped += int((~is_within).sum())
        return rows[is_within.to(rows.device)]
