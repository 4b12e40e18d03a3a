"""`ActivationBuffer`: harvested rows, shuffled in windows, each served exactly once per epoch.

A window is filled, shuffled and served whole, then the next; it holds a whole number of batches, and rows
left over from the last harvested token batch open the next window. The order is a pure function of (seed,
epoch, window), so the position of a run is a few integers, and resuming harvests the current window again.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.buffer_checks import (
    check_harvest,
    check_read,
    check_service,
    check_state,
    require_restart,
    rows_within,
)
from crosscoders.row_stream import LiveRows, RowOrigin, RowStream, SupportsHarvest, excluded_ids
from crosscoders.sources import Source, scale_from_mean_norm, width
from crosscoders.store import ActivationStore
from crosscoders.token_batches import TokenBatches


class ActivationBuffer:
    """Shuffled activation batches from token batches, within a byte limit.

    Every harvested row that is neither excluded nor an outlier is served exactly once per epoch; which rows
    those are does not depend on the seed. The end of the token batches ends the iteration unless `epochs`
    says otherwise. A second loop goes on where the first one was left.

    Rows are stored in `dtype` and served as float32. The window, its permutation and the rows carried over to
    the next window stay within `max_bytes`; the batch on its way out and the harvest itself come on top.

    Args:
        sources: `ModelSources`, or anything with `sources` and `harvest`.
        token_batches: Token ids [batch pos], padded on the right. A one-shot iterator serves one epoch and
            cannot be resumed. No batch may be larger than the first, unless they are a sequence.
        max_bytes: Limit on the memory held between batches.
        generator: The seed is drawn from it, once.
        batch_tokens: Rows per batch; only the last batch of an epoch may be shorter.
        dtype: Storage dtype of the rows.
        exclude_token_ids: Positions with these ids are left out (padding, special tokens), and those with the
            ids that `sources.exclude_token_ids` names, where it has that (see `IdPolicy`).
        skip_positions: Leading positions of each sequence that are left out.
        max_norm_multiple: Leave out rows whose norm in any source exceeds this multiple of that source's
            median norm over the candidate rows of the first window. The limits found there hold for the
            whole run and travel in `state_dict`. None drops nothing.
        epochs: Passes over the token batches.
        device: Where the window lives.
        store: Keeps the rows on disk: those that it holds are read, those that it lacks are harvested into it
            first. The rows served and their order are the same with and without it.

    Raises:
        ValueError: A setting out of range, no token batches, `max_bytes` below one batch, or a store of other
            sources, tokens or settings.

    Example:
        generator = torch.Generator().manual_seed(0)
        buffer = ActivationBuffer(sources, tokens.split(8), max_bytes=1 << 30, generator=generator)
        for batch in buffer:  # [batch width]
            ...
    """

    @typed
    def __init__(
        self,
        sources: SupportsHarvest,
        token_batches: Iterable[Tensor],
        *,
        max_bytes: int,
        generator: torch.Generator,
        batch_tokens: int = 2048,
        dtype: torch.dtype = torch.bfloat16,
        exclude_token_ids: Collection[int] = (),
        skip_positions: int = 0,
        max_norm_multiple: int | float | None = None,
        epochs: int = 1,
        device: torch.device | str = "cpu",
        store: ActivationStore | None = None,
    ) -> None:
        check_harvest(skip_positions=skip_positions, dtype=dtype)
        excluded = excluded_ids(sources, exclude_token_ids)
        tokens = TokenBatches(token_batches, exclude_token_ids=excluded, skip_positions=skip_positions)
        origin: RowOrigin
        if store is None:
            origin = LiveRows(sources, tokens, dtype=dtype, device=torch.device(device))
        else:
            origin = store.filled_rows(sources, tokens, dtype=dtype, device=torch.device(device))
        self._begin(
            origin,
            max_bytes=max_bytes,
            generator=generator,
            batch_tokens=batch_tokens,
            max_norm_multiple=max_norm_multiple,
            epochs=epochs,
            device=torch.device(device),
        )

    @classmethod
    @typed
    def from_store(
        cls,
        store: ActivationStore,
        *,
        max_bytes: int,
        generator: torch.Generator,
        batch_tokens: int = 2048,
        max_norm_multiple: int | float | None = None,
        epochs: int = 1,
        device: torch.device | str = "cpu",
    ) -> "ActivationBuffer":
        """A buffer over a complete store, without models or tokens.

        It serves the rows in the order in which a buffer over the live harvest would, to the last bit, and
        takes that one's states, as that one takes its own.

        Args:
            store: Holds every row; it also says their dtype and which positions were left out.
            max_bytes: Limit on the memory held between batches.
            generator: The seed is drawn from it, once.
            batch_tokens: Rows per batch; only the last batch of an epoch may be shorter.
            max_norm_multiple: As for a live harvest.
            epochs: Passes over the store.
            device: Where the window lives.

        Returns:
            The buffer.

        Raises:
            CheckpointError: The store lacks a shard.
            ValueError: A setting out of range, or `max_bytes` below one batch.
        """
        buffer = cls.__new__(cls)
        buffer._begin(
            store.stored_rows(device=torch.device(device)),
            max_bytes=max_bytes,
            generator=generator,
            batch_tokens=batch_tokens,
            max_norm_multiple=max_norm_multiple,
            epochs=epochs,
            device=torch.device(device),
        )
        return buffer

    def _begin(
        self,
        origin: RowOrigin,
        *,
        max_bytes: int,
        generator: torch.Generator,
        batch_tokens: int,
        max_norm_multiple: float | None,
        epochs: int,
        device: torch.device,
    ) -> None:
        """Stand before the first window of these rows."""
        check_service(batch_tokens=batch_tokens, epochs=epochs, max_norm_multiple=max_norm_multiple)
        self._batch_tokens, self._epochs = batch_tokens, epochs
        self._max_norm_multiple = max_norm_multiple
        self._raw_sources = tuple(origin.sources)
        self._dtype, self._device = origin.dtype, device
        self._stream = RowStream(origin)
        require_restart("epochs > 1", needed=epochs > 1, can_restart=origin.can_restart)
        self._window_rows = rows_within(
            max_bytes,
            row_bytes=width(self._raw_sources) * self._dtype.itemsize,
            batch_tokens=batch_tokens,
            largest_batch=origin.largest_batch,
            n_rows=origin.n_rows(),
        )
        self._settings = {
            "sources": [[source.name, source.d_model, source.hook_name] for source in self._raw_sources],
            "window_rows": self._window_rows,
            "batch_tokens": batch_tokens,
            "dtype": str(origin.dtype),
            "exclude_token_ids": list(origin.exclude_token_ids),
            "skip_positions": origin.skip_positions,
            "max_norm_multiple": max_norm_multiple,
        }
        self._seed = int(torch.randint(0, 2**62, (), generator=generator))
        self._scales: list[float] | None = None
        self._norm_limits: list[float] | None = None
        self._storage: Tensor | None = None
        self._order = torch.zeros(0, dtype=torch.int64, device=self._device)
        self._is_ended = False
        self._epoch_rows = self._n_dropped_before = 0
        self._tokens_served = self._unique_tokens_served = 0
        self._move_to(epoch=0, window=0, start=(0, 0), served=0)

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources, with scales that bring the rows of the first window to mean norm sqrt(d_model).

        Reading it before the first batch fills the first window, which is then served as usual.
        """
        if self._scales is None:
            self._fill()
        assert self._scales is not None  # a first window without rows raised
        return tuple(replace(source, scale=scale) for source, scale in zip(self._raw_sources, self._scales))

    @property
    def tokens_served(self) -> int:
        """Rows served so far; repeats in later epochs count again."""
        return self._tokens_served

    @property
    def unique_tokens_served(self) -> int:
        """Different rows served so far: those of the first epoch."""
        return self._unique_tokens_served

    @property
    def n_dropped_outliers(self) -> int:
        """Rows left out for their norm in the token batches harvested so far; later epochs count again."""
        return self._stream.n_dropped

    @property
    def n_tokens(self) -> int | None:
        """Rows of a full run over all epochs, or None where only running tells.

        Counted from the token ids if `token_batches` is a sequence and no outliers are dropped.
        """
        rows = None if self._max_norm_multiple is not None else self._stream.origin.n_rows()
        return None if rows is None else rows * self._epochs

    @property
    def window_batches(self) -> int:
        """Batches of a whole window; what is made ahead of the trainer needs room for as many."""
        return self._window_rows // self._batch_tokens

    @property
    def held_bytes(self) -> int:
        """Memory of the window, its permutation and the carried rows right now."""
        window = 0 if self._storage is None else self._storage.untyped_storage().nbytes()
        return window + self._order.untyped_storage().nbytes() + self._stream.pending_bytes

    def __iter__(self) -> Iterator[Float[Tensor, "batch width"]]:
        if self._is_ended:
            raise RuntimeError(
                f"ActivationBuffer: all {self._epochs} epochs were served ({self._tokens_served} rows); "
                "build a new buffer, with larger epochs= to repeat the data."
            )
        return self

    def __next__(self) -> Float[Tensor, "batch width"]:
        return self.next_stored().float()

    @typed
    def next_stored(self) -> Float[Tensor, "batch width"]:
        """The next batch as it is kept, in `dtype`; `next` gives the same rows in float32.

        Raises:
            StopIteration: All epochs were served.
        """
        while not self._has_rows():
            if self._epoch >= self._epochs:
                self._is_ended = True
                raise StopIteration
            if not self._fill():
                self._n_dropped_before = self._stream.n_dropped
                self._move_to(epoch=self._epoch + 1, window=0, start=(0, 0), served=0)
                self._epoch_rows = 0
        assert self._storage is not None  # `_has_rows` says that the window was filled
        rows = self._order[self._served : self._served + self._batch_tokens]
        self._served += len(rows)
        self._epoch_rows += len(rows)
        self._tokens_served += len(rows)
        self._unique_tokens_served += len(rows) if self._epoch == 0 else 0
        return self._storage[rows]

    def state_dict(self) -> dict[str, Any]:
        """Position and counters of the run as plain values; take it between any two batches."""
        self._leave_served_window()
        return {
            "settings": dict(self._settings),
            "first_batch_sha256": self._stream.origin.first_sha256,
            "seed": self._seed,
            "epoch": self._epoch,
            "window": self._window,
            "start": list(self._start),
            "served": self._served,
            "epoch_rows": self._epoch_rows,
            "tokens_served": self._tokens_served,
            "unique_tokens_served": self._unique_tokens_served,
            "n_dropped_before": self._n_dropped_before,
            "scales": self._scales,
            "norm_limits": self._norm_limits,
        }

    @typed
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken; its window is harvested again.

        Args:
            state: From a buffer over the same sources, token batches and settings; the seed comes from it.

        Raises:
            ValueError: `token_batches` is a one-shot iterator, or not what the state was taken from.
        """
        require_restart("load_state_dict", needed=True, can_restart=self._stream.origin.can_restart)
        check_state(state, settings=self._settings, first_sha256=self._stream.origin.first_sha256)
        self._seed, self._scales, self._norm_limits = state["seed"], state["scales"], state["norm_limits"]
        if self._norm_limits is not None:
            self._stream.limit_norms(self._norm_limits)
        self._epoch_rows, self._n_dropped_before = state["epoch_rows"], state["n_dropped_before"]
        self._tokens_served = state["tokens_served"]
        self._unique_tokens_served = state["unique_tokens_served"]
        self._stream.n_dropped = self._n_dropped_before
        self._is_ended = False
        first_batch, first_row = state["start"]
        start = (first_batch, first_row)
        self._move_to(epoch=state["epoch"], window=state["window"], start=start, served=state["served"])

    def _move_to(self, *, epoch: int, window: int, start: tuple[int, int], served: int) -> None:
        self._epoch, self._window, self._start, self._served = epoch, window, start, served
        self._n_filled: int | None = None

    def _leave_served_window(self) -> None:
        """Stand at the start of the next window once the current one was served."""
        if self._n_filled is not None and self._served == self._n_filled:
            self._n_dropped_before = self._stream.n_dropped
            self._move_to(epoch=self._epoch, window=self._window + 1, start=self._stream.position, served=0)

    def _has_rows(self) -> bool:
        self._leave_served_window()
        return self._n_filled is not None

    def _fill(self) -> bool:
        """Fill and shuffle the window at `_start`; False if this epoch has no more rows."""
        if self._epoch >= self._epochs or self._n_filled is not None:
            return False
        self._stream.n_dropped = self._n_dropped_before
        self._stream.seek(self._start)
        self._order = self._order[:0].clone()  # frees the old permutation before the new one is made
        n_filled = self._read_rows(0)
        if self._max_norm_multiple is not None and self._norm_limits is None and n_filled:
            n_filled = self._read_rows(self._drop_first_outliers(n_filled))
        check_read(
            n_filled,
            epoch=self._epoch,
            window=self._window,
            epoch_rows=self._epoch_rows,
            batch_tokens=self._batch_tokens,
            n_read=self._stream.position[0],
        )
        if n_filled == 0:
            return False
        if self._scales is None:
            self._scales = self._estimate_scales(n_filled)
        self._order = self._permutation(n_filled)
        self._n_filled = n_filled
        return True

    def _read_rows(self, n_filled: int) -> int:
        if self._storage is None:
            shape = (self._window_rows, width(self._raw_sources))
            self._storage = torch.empty(shape, dtype=self._dtype, device=self._device)
        while n_filled < self._window_rows:
            rows = self._stream.take(self._window_rows - n_filled)
            if rows is None:
                break
            self._storage[n_filled : n_filled + len(rows)] = rows
            n_filled += len(rows)
        return n_filled

    def _drop_first_outliers(self, n_filled: int) -> int:
        """Set the norm limits from the first window's candidates and keep those within them."""
        assert self._storage is not None
        assert self._max_norm_multiple is not None
        norms = self._stream.source_norms(self._storage[:n_filled])
        limits = self._max_norm_multiple * norms.median(dim=0).values
        is_within = (norms <= limits).all(dim=1)
        kept = torch.nonzero(is_within)[:, 0].to(self._device)
        for start in range(0, len(kept), self._batch_tokens):  # in place: a row never moves up
            rows = kept[start : start + self._batch_tokens]
            self._storage[start : start + len(rows)] = self._storage[rows]
        n_of_last_batch = self._stream.position[1]
        n_taken = int(is_within[n_filled - n_of_last_batch :].sum()) if n_of_last_batch else 0
        self._norm_limits = limits.tolist()
        self._stream.n_dropped += n_filled - len(kept)
        self._stream.limit_norms(self._norm_limits, n_taken=n_taken)
        return len(kept)

    def _estimate_scales(self, n_filled: int) -> list[float]:
        assert self._storage is not None  # the first window was just filled
        norms = self._stream.source_norms(self._storage[:n_filled]).double().mean(dim=0).tolist()
        return [scale_from_mean_norm(norm, source.d_model) for norm, source in zip(norms, self._raw_sources)]

    def _permutation(self, n_rows: int) -> Tensor:
        digest = hashlib.sha256(f"{self._seed}:{self._epoch}:{self._window}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return torch.randperm(n_rows, generator=generator).to(self._device)
