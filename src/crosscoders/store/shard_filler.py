"""`ShardFiller`: harvests the shards that a store lacks."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from crosscoders._io import is_temporary
from crosscoders.errors import CheckpointError
from crosscoders.row_stream import SupportsHarvest, kept_rows, row_norms
from crosscoders.sources import width
from crosscoders.store.shard_entry import ShardEntry, entry_name, shard_name, write_entry
from crosscoders.store.shard_file import shard_bytes, write_shard
from crosscoders.store.shard_folder import ShardFolder
from crosscoders.store.space import check_space
from crosscoders.store.writer_lock import WriterLock
from crosscoders.token_batches import TokenBatches, ids_sha256


class ShardFiller:
    """Harvests shards, each from its own token batches alone, and holds the store's lock meanwhile.

    Args:
        shards: The store's shards.
        harvester: Sources and their activations.
        tokens: What is read.
    """

    def __init__(self, shards: ShardFolder, harvester: SupportsHarvest, tokens: TokenBatches) -> None:
        self.tokens = tokens
        self._shards, self._harvester = shards, harvester
        self._lock: WriterLock | None = None
        self._reader: Iterator[Tensor] = iter(())
        self._ahead: Tensor | None = None  # read already, and the first of shard `_at`
        self._at: int | None = None

    def fill(self, index: int) -> bool:
        """Harvest one shard.

        Args:
            index: Which one.

        Returns:
            Whether it is there now; False if the token batches end before it.

        Raises:
            BlockingIOError: Another process is writing to this store.
            OSError: Too little space is free.
        """
        self._take_lock()
        is_there = self._fill(index)
        if not self._shards.missing():
            self.release()
        return is_there

    def fill_all(self, *, say: Callable[[str], object]) -> None:
        """Harvest every shard that is missing or damaged.

        Args:
            say: Takes a line on each shard.

        Raises:
            BlockingIOError: Another process is writing to this store.
            OSError: Too little space is free.
            ValueError: A shard that is there was made of other tokens.
        """
        self._take_lock()
        try:
            index = 0
            while not self._shards.is_beyond_end(index) and self._keep_or_fill(index, say=say):
                index += 1
        finally:
            self.release()

    def release(self) -> None:
        """Let another process write."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        lock, folder = WriterLock(self._shards.path), self._shards.path
        for path in folder.iterdir():
            if is_temporary(path.name):
                path.unlink()  # a writer was killed; no other one is at work
        expected = self._shards.bytes_expected()
        if expected is not None:
            needed = max(0, expected - self._shards.bytes_present())
            check_space(folder, needed=needed, what=f"the rest of a store of {expected} bytes")
        self._lock = lock

    def _keep_or_fill(self, index: int, *, say: Callable[[str], object]) -> bool:
        name = shard_name(index)
        if self._shards.has(index):
            try:
                self._shards.forget(index)
                self._shards.open(index)
            except CheckpointError as err:
                say(f"{name}: damaged, harvesting it again ({err})")
            else:
                self._check_tokens(index)
                return True
        is_there = self._fill(index)
        if is_there:
            entry = self._shards.entry(index)
            of = "" if self._shards.layout.n_shards is None else f" of {self._shards.layout.n_shards}"
            say(f"{name}: {entry.n_rows} rows ({index + 1}{of})")
        return is_there

    def _fill(self, index: int) -> bool:
        at, self._at = self._at, None  # stays unset if this fails: the reader has moved
        batches, is_last = self._read_batches(index, at=at)
        if batches:
            self._write(index, batches, is_last=is_last)
        self._at = index + 1
        return bool(batches)

    def _read_batches(self, index: int, *, at: int | None) -> tuple[list[Tensor], bool]:
        """The token batches of a shard, and whether they are the last."""
        n_batches = self._shards.layout.batches_per_shard
        if at != index:
            self._reader, self._ahead = self.tokens.read_from(index * n_batches), None
        batches = [] if self._ahead is None else [self._ahead]
        batches += islice(self._reader, n_batches - len(batches))
        self._ahead = next(self._reader, None)
        return batches, self._ahead is None

    def _check_tokens(self, index: int) -> None:
        """A store that knows the SHA-256 of all tokens was compared already; another is, shard by shard."""
        if self.tokens.sequence is not None:
            return
        at, self._at = self._at, None
        batches, _ = self._read_batches(index, at=at)
        self._at = index + 1
        if ids_sha256(batches) != self._shards.entry(index).tokens_sha256:
            raise ValueError(
                f"{self._shards.path / shard_name(index)}: was made of other token batches; pass the same in "
                "the same order, or fill another folder."
            )

    def _write(self, index: int, batches: Sequence[Tensor], *, is_last: bool) -> None:
        layout, folder = self._shards.layout, self._shards.path
        kept = [self.tokens.is_kept(tokens) for tokens in batches]
        batch_rows = [int(is_kept.sum()) for is_kept in kept]
        token_ids = torch.cat([tokens[is_kept].cpu() for tokens, is_kept in zip(batches, kept, strict=True)])
        shape = {"width": width(layout.sources), "dtype": layout.torch_dtype}
        needed = shard_bytes(n_rows=sum(batch_rows), n_batches=len(batches), **shape)
        check_space(folder, needed=needed, what=shard_name(index))
        norm_sums = torch.zeros(len(layout.sources), dtype=torch.float64)

        def rows() -> Iterator[Tensor]:
            for tokens, is_kept in zip(batches, kept, strict=True):
                device = torch.device("cpu")
                found = kept_rows(self._harvester, tokens, is_kept, dtype=layout.torch_dtype, device=device)
                norm_sums.add_(row_norms(found, layout.sources).double().sum(dim=0))
                yield found

        (folder / entry_name(index)).unlink(missing_ok=True)  # no shard while its file is replaced
        self._shards.forget(index)
        file = write_shard(
            folder / shard_name(index), rows(), batch_rows=batch_rows, token_ids=token_ids, **shape
        )
        entry = ShardEntry(
            store_sha256=self._shards.sha256,
            index=index,
            n_batches=len(batches),
            n_rows=sum(batch_rows),
            norm_sums=tuple(norm_sums.tolist()),
            tokens_sha256=ids_sha256(batches),
            is_last=is_last,
            files={shard_name(index): file},
        )
        write_entry(folder, entry)
