"""`ActivationStore`: the rows of a harvest on disk, in shards that can each be harvested again."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._io import atomic_write, read_manifest, write_manifest
from crosscoders._typing import typed
from crosscoders.errors import CheckpointError
from crosscoders.row_stream import RowOrigin, SupportsHarvest, excluded_ids
from crosscoders.sources import Source, scale_from_mean_norm
from crosscoders.store.layout import StoreLayout, layout_of
from crosscoders.store.shard_entry import ShardEntry, shard_name
from crosscoders.store.shard_file import ShardFile
from crosscoders.store.shard_filler import ShardFiller
from crosscoders.store.shard_folder import MEND, ShardFolder
from crosscoders.store.stored_rows import StoredRows
from crosscoders.store.writer_lock import WriterLock
from crosscoders.token_batches import TokenBatches

STORE_NAME = "store.json"
_KEYS = ("layout", "about")


class ActivationStore:
    """Harvested rows on disk: one folder, its shards safetensors files, every byte of it checked.

    A shard holds the rows of a fixed number of token batches and does not depend on any other, so a harvest
    may stop and go on anywhere, and a missing shard is harvested again alone. Shards are read through shared
    memory maps after their SHA-256 was checked; memory stays at one token batch's rows whatever the size.

    Args:
        folder: Folder of a store that `create` laid out.

    Raises:
        CheckpointError: There is none, or its `store.json` is damaged.

    Example:
        store = ActivationStore.create("rows", sources, tokens.split(8))
        store.fill(sources, tokens.split(8))
        buffer = ActivationBuffer.from_store(store, max_bytes=1 << 30, generator=generator)
    """

    @typed
    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        content, self.layout = _read_layout(self.folder / STORE_NAME)
        self.about: Mapping[str, Any] = content["about"]
        self._shards = ShardFolder(self.folder, self.layout)

    @classmethod
    @typed
    def create(
        cls,
        folder: Path | str,
        harvester: SupportsHarvest,
        token_batches: Iterable[Tensor],
        *,
        dtype: torch.dtype = torch.bfloat16,
        shard_bytes: int = 1 << 28,
        exclude_token_ids: Collection[int] = (),
        skip_positions: int = 0,
        about: Mapping[str, Any] | None = None,
    ) -> "ActivationStore":
        """Lay out a store, or open the one that the same harvest laid out before; nothing is harvested yet.

        Args:
            folder: Its folder; made if it is missing.
            harvester: Sources and their activations.
            token_batches: Token ids [batch pos], padded on the right; they must be readable more than once.
            dtype: Dtype of the rows, `torch.bfloat16` or `torch.float32`.
            shard_bytes: Size that one file aims at; a store that exists keeps its own.
            exclude_token_ids: Positions with these ids are left out, and those that the harvester excludes.
            skip_positions: Leading positions of each sequence that are left out.
            about: Further facts about the harvest, ready for JSON, kept as they are.

        Returns:
            The store.

        Raises:
            ValueError: The folder holds a store of another harvest, the token batches are a one-shot
                iterator or none, or a setting is out of range.
            CheckpointError: Its `store.json` is damaged.
            BlockingIOError: Another process is laying out a store in this folder.
        """
        folder = Path(folder)
        excluded = excluded_ids(harvester, exclude_token_ids)
        tokens = TokenBatches(token_batches, exclude_token_ids=excluded, skip_positions=skip_positions)
        if not tokens.can_restart:
            raise ValueError(
                "ActivationStore.create: token_batches is a one-shot iterator, and its first batch would be "
                "lost; pass a list, or an object whose __iter__ starts anew."
            )
        layout = layout_of(harvester, tokens, dtype=dtype, shard_bytes=shard_bytes)
        path = folder / STORE_NAME
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            lock = WriterLock(folder)
            content = {"layout": layout.to_dict(), "about": dict(about or {})}
            atomic_write(path, lambda temporary: write_manifest(temporary, content))
            lock.release()
        store = cls(folder)
        store._require(layout)
        return store

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the rows."""
        return self.layout.torch_dtype

    @property
    def missing_shards(self) -> tuple[int, ...]:
        """Shards that are still to be harvested.

        Where the number of token batches is not known, the one after the last is among them until the end was
        seen.
        """
        return tuple(self._shards.missing())

    @property
    def is_complete(self) -> bool:
        """Whether no shard is missing."""
        return not self._shards.missing()

    @property
    def n_rows(self) -> int:
        """Rows in the shards that are there."""
        return sum(entry.n_rows for entry in self._entries())

    @property
    def n_batches(self) -> int:
        """Token batches in the shards that are there."""
        return sum(entry.n_batches for entry in self._entries())

    @property
    def n_bytes(self) -> int:
        """Bytes of the shards that are there."""
        return self._shards.bytes_present()

    @property
    def n_bytes_expected(self) -> int | None:
        """Bytes, rounded up a little, of the complete store; None where the number of rows is not known."""
        return self._shards.bytes_expected()

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources; of a complete store with scales that bring all rows to mean norm sqrt(d_model).

        Until then the scales are 1.0, which says that they were not estimated.
        """
        if not self.is_complete or self.n_rows == 0:
            return self.layout.sources
        sums = zip(*(entry.norm_sums for entry in self._entries()), strict=True)
        means = [math.fsum(of_source) / self.n_rows for of_source in sums]
        return tuple(
            replace(source, scale=scale_from_mean_norm(mean, source.d_model))
            for source, mean in zip(self.layout.sources, means, strict=True)
        )

    @typed
    def read(self, batch: int) -> Float[Tensor, "batch width"]:
        """The rows of one token batch.

        Args:
            batch: Index of the token batch.

        Returns:
            Its kept rows, in order, in the dtype of the store.

        Raises:
            CheckpointError: The shard is missing or damaged.
            ValueError: There is no such token batch.
        """
        shard, at = self._locate(batch)
        return shard.rows(at)

    @typed
    def token_ids(self, batch: int) -> Int[Tensor, " batch"]:
        """The token id of each row that `read` gives.

        Args:
            batch: Index of the token batch.

        Returns:
            One id per row.

        Raises:
            CheckpointError: The shard is missing or damaged.
            ValueError: There is no such token batch.
        """
        shard, at = self._locate(batch)
        return shard.token_ids(at)

    @typed
    def verify(self) -> list[str]:
        """Check every byte of every shard.

        Returns:
            One line per missing or damaged shard; nothing where all is well.
        """
        self._shards.forget()
        try:
            missing = self._shards.missing()
        except CheckpointError as err:
            return [str(err)]
        faults = {index: f"{self.folder / shard_name(index)}: missing. {MEND}" for index in missing}
        for index in self._shards.present():
            try:
                self._shards.open(index)
            except CheckpointError as err:
                faults[index] = str(err)
        return [faults[index] for index in sorted(faults)]

    @typed
    def fill(
        self,
        harvester: SupportsHarvest,
        token_batches: Iterable[Tensor],
        *,
        say: Callable[[str], object] | None = None,
    ) -> None:
        """Harvest every shard that is missing or damaged.

        What is there already is checked, byte for byte, and kept. A shard that was harvested stays, whatever
        happens afterwards.

        Args:
            harvester: Sources and their activations, as at `create`.
            token_batches: The same token batches.
            say: Takes a line on each shard.

        Raises:
            ValueError: Other sources or tokens than those of the store.
            BlockingIOError: Another process is writing to this store.
            OSError: Too little space is free; the message has the numbers.
        """
        excluded = excluded_ids(harvester, self.layout.exclude_token_ids)
        tokens = TokenBatches(
            token_batches, exclude_token_ids=excluded, skip_positions=self.layout.skip_positions
        )
        filler = self._filler(harvester, tokens, dtype=self.dtype)
        filler.fill_all(say=say or (lambda _: None))

    @typed
    def stored_rows(self, *, device: torch.device) -> RowOrigin:
        """The rows of a complete store as an `ActivationBuffer` reads them.

        Args:
            device: Where the rows go.

        Returns:
            What a `RowStream` reads.

        Raises:
            CheckpointError: A shard is missing.
        """
        missing = self.missing_shards
        if missing:
            raise CheckpointError(
                f"{self.folder}: {len(missing)} shards are missing, the first is {shard_name(missing[0])}. "
                f"{MEND}"
            )
        return StoredRows(self._shards, device=device)

    @typed
    def filled_rows(
        self, harvester: SupportsHarvest, tokens: TokenBatches, *, dtype: torch.dtype, device: torch.device
    ) -> RowOrigin:
        """The rows of a store that is filled where a shard is missing when it is read.

        Args:
            harvester: Sources and their activations.
            tokens: What is read.
            dtype: Dtype of the rows.
            device: Where the rows go.

        Returns:
            What a `RowStream` reads.

        Raises:
            ValueError: The store holds other sources, tokens, settings or another dtype.
        """
        return StoredRows(self._shards, device=device, filler=self._filler(harvester, tokens, dtype=dtype))

    def _require(self, here: StoreLayout) -> None:
        found = self.layout.differences(here)
        if found:
            raise ValueError(
                f"{self.folder}: this store holds another harvest; (stored, here) differ in {found}. Give "
                "another folder, or what the store was made from."
            )

    def _filler(self, harvester: SupportsHarvest, tokens: TokenBatches, *, dtype: torch.dtype) -> ShardFiller:
        self._require(layout_of(harvester, tokens, dtype=dtype, shard_bytes=1))
        return ShardFiller(self._shards, harvester, tokens)

    def _entries(self) -> list[ShardEntry]:
        return [self._shards.entry(index) for index in self._shards.present()]

    def _locate(self, batch: int) -> tuple[ShardFile, int]:
        index, at = divmod(batch, self.layout.batches_per_shard)
        if batch < 0 or self._shards.is_beyond_end(index):
            raise ValueError(f"{self.folder}: there is no token batch {batch}.")
        shard = self._shards.open(index)
        if at >= shard.n_batches:
            raise ValueError(f"{self.folder}: there is no token batch {batch}; shard {index} ends before it.")
        return shard, at


def _read_layout(path: Path) -> tuple[dict[str, Any], StoreLayout]:
    advice = (
        "If it is damaged, remove it and run `crosscoders store fill CONFIG`: it is written anew, and the "
        "shards that fit are kept."
    )
    try:
        content = read_manifest(path, keys=_KEYS)
    except CheckpointError as err:
        raise CheckpointError(f"{err} {advice if path.exists() else ''}".strip()) from err
    try:
        return content, StoreLayout.from_dict(content["layout"])
    except (AttributeError, KeyError, TypeError, ValueError) as err:
        raise CheckpointError(f"{path}: holds no layout of a store ({err}). {advice}") from err
