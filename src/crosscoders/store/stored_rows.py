"""`StoredRows`: the rows of a store as a `RowStream` reads them, harvested first where a shard is missing."""

from collections.abc import Iterator

import torch
from torch import Tensor

from crosscoders.store.shard_filler import ShardFiller
from crosscoders.store.shard_folder import ShardFolder


class StoredRows:
    """Rows from disk, shard by shard.

    Args:
        shards: The store's shards.
        device: Where the rows go.
        filler: Harvests what is missing; None if nothing is.
    """

    def __init__(
        self, shards: ShardFolder, *, device: torch.device, filler: ShardFiller | None = None
    ) -> None:
        layout = shards.layout
        self.sources, self.dtype = layout.sources, layout.torch_dtype
        self.exclude_token_ids, self.skip_positions = layout.exclude_token_ids, layout.skip_positions
        self.first_sha256, self.largest_batch = layout.first_batch_sha256, layout.largest_batch
        self.can_restart = filler is None or filler.tokens.can_restart
        self._shards, self._filler, self._device = shards, filler, device

    def n_rows(self) -> int | None:
        """Rows of one pass, if the harvest was given a sequence of token batches."""
        return self._shards.layout.n_rows

    def rows_from(self, batch: int) -> Iterator[Tensor]:
        """Read token batches from one on.

        Args:
            batch: Index of the first.

        Yields:
            The kept rows [batch width] of each.
        """
        shards = self._shards
        index, start = divmod(batch, shards.layout.batches_per_shard)
        while not shards.is_beyond_end(index):
            if self._filler is not None and not shards.has(index) and not self._filler.fill(index):
                return
            for rows in shards.rows_of(index, start=start):
                yield rows.to(self._device)
            index, start = index + 1, 0
