"""`ShardFolder`: which shards of a store are there, and reading them after every byte was checked."""

import re
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from crosscoders.errors import CheckpointError
from crosscoders.sources import width
from crosscoders.store.layout import StoreLayout
from crosscoders.store.shard_entry import ShardEntry, entry_name, read_entry, shard_name
from crosscoders.store.shard_file import ShardFile, shard_bytes

MEND = "`crosscoders store fill CONFIG` (or ActivationStore.fill) harvests what is missing or damaged."
_SHARD = re.compile(r"shard-(\d{5,})\.json")
_N_OPEN = 2
_LONGER_HEADER = 64  # by which a shard's header may exceed an empty one's


class ShardFolder:
    """The shards of one store.

    Args:
        path: The folder.
        layout: What the rows are.
    """

    def __init__(self, path: Path, layout: StoreLayout) -> None:
        self.path, self.layout = path, layout
        self.sha256 = layout.sha256()
        self._entries: dict[int, ShardEntry] = {}
        self._open: dict[int, ShardFile] = {}

    def present(self) -> list[int]:
        """The shards that are there, complete."""
        names = {path.name for path in self.path.iterdir()}
        found = (int(match[1]) for name in names if (match := _SHARD.fullmatch(name)))
        return sorted(index for index in found if shard_name(index) in names)

    def missing(self) -> list[int]:
        """The shards that are still to be harvested.

        Where the number of token batches is not known, the one after the last is among them until the end was
        seen.
        """
        present, n_shards = self.present(), self.layout.n_shards
        if n_shards is None:
            n_shards = 0 if not present else present[-1] + 1
            n_shards += not present or not self.entry(present[-1]).is_last
        there = set(present)
        return [index for index in range(n_shards) if index not in there]

    def has(self, index: int) -> bool:
        """Whether a shard is there, complete.

        Args:
            index: Which one.

        Returns:
            False while it is being written.
        """
        return all((self.path / name(index)).is_file() for name in (entry_name, shard_name))

    def is_beyond_end(self, index: int) -> bool:
        """Whether the token batches are known to end before a shard.

        Args:
            index: Which one.

        Returns:
            False also where nobody knows yet.
        """
        if self.layout.n_shards is not None:
            return index >= self.layout.n_shards
        return index > 0 and self.has(index - 1) and self.entry(index - 1).is_last

    def entry(self, index: int) -> ShardEntry:
        """What the manifest of a shard says.

        Args:
            index: Which one.

        Returns:
            Its counts and checksums.

        Raises:
            CheckpointError: The manifest is missing, damaged, or of another store.
        """
        if index not in self._entries:
            try:
                self._entries[index] = read_entry(self.path, index, store_sha256=self.sha256)
            except CheckpointError as err:
                raise CheckpointError(f"{err} {MEND}") from err
        return self._entries[index]

    def open(self, index: int) -> ShardFile:
        """Check every byte of a shard and open it; the last two stay open.

        Args:
            index: Which one.

        Returns:
            The open shard.

        Raises:
            CheckpointError: It is missing or damaged.
        """
        if index not in self._open:
            path = self.path / shard_name(index)
            entry = self.entry(index)
            try:
                opened = ShardFile(path, entry=dict(entry.files[path.name]))
            except CheckpointError as err:
                raise CheckpointError(f"{err} {MEND}") from err
            while len(self._open) >= _N_OPEN:
                del self._open[next(iter(self._open))]
            self._open[index] = opened
        return self._open[index]

    def forget(self, index: int | None = None) -> None:
        """Read a shard anew next time.

        Args:
            index: Which one; None for all.
        """
        for known in (self._entries, self._open):
            for unwanted in list(known) if index is None else [index]:
                known.pop(unwanted, None)

    def rows_of(self, index: int, *, start: int) -> Iterator[Tensor]:
        """The rows of a shard's token batches, every byte checked anew.

        What was open since an earlier pass may have changed on the disk since then.

        Args:
            index: Which shard.
            start: First token batch within it.

        Yields:
            Rows [batch width] in CPU memory.
        """
        self._open.pop(index, None)
        shard = self.open(index)
        for batch in range(start, shard.n_batches):
            yield shard.rows(batch)

    def bytes_present(self) -> int:
        """Bytes of the files of the shards that are there."""
        return sum((self.path / shard_name(index)).stat().st_size for index in self.present())

    def bytes_expected(self) -> int | None:
        """Bytes, rounded up a little, of all shards; None where the number of rows is not known."""
        layout = self.layout
        if layout.n_rows is None or layout.n_batches is None or layout.n_shards is None:
            return None
        empty = shard_bytes(n_rows=0, n_batches=0, width=width(layout.sources), dtype=layout.torch_dtype)
        headers = layout.n_shards * (empty + _LONGER_HEADER)
        return headers + layout.n_rows * layout.row_bytes + 8 * layout.n_batches
