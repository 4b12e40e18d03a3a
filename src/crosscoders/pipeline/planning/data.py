"""What the data of a run take beside the buffer: the store and the checkpoints on disk, ids in memory."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from crosscoders._typing import typed
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.planning.training_bytes import TrainingBytes
from crosscoders.store.layout import ID_BYTES


@dataclass(frozen=True, kw_only=True)
class DataBytes:
    """Disk and CPU memory that a run's data need; sizes in bytes.

    Args:
        row: One token in a store: its row of all sources, and its id.
        n_rows: Rows of a whole store at most; None where `data.n_tokens` leaves that to the text.
        store: Folder of the run's store; None keeps no rows on disk.
        stored: Bytes that lie there already.
        out: The run folder.
        checkpoint: One checkpoint: weights, Adam's moments, calibration batches, counters.
        n_checkpoints: Most that lie on disk at once, the one being written included; 0 without checkpoints.
        crosscoder: The saved crosscoder.
        token_ids: Packed ids of all tokens, in CPU memory; 0 where their number is not known.
        in_flight: Batches that background harvesting is ahead, in CPU memory.
        free: Free bytes on the file systems of `store` and `out`, by folder.
    """

    row: int
    n_rows: int | None
    store: str | None
    stored: int
    out: str
    checkpoint: int
    n_checkpoints: int
    crosscoder: int
    token_ids: int
    in_flight: int
    free: dict[str, int]

    @property
    def whole_store(self) -> int | None:
        """A store of all rows; None where their number is not known."""
        return None if self.n_rows is None else self.row * self.n_rows

    @property
    def run_folder(self) -> int:
        """Checkpoints and the saved crosscoder; tables and figures, a few megabytes, are left out."""
        return self.n_checkpoints * self.checkpoint + self.crosscoder

    def needs(self) -> dict[str, int | None]:
        """Bytes still needed on disk by folder; None where the number of rows is not known.

        Folders of one file system need their sum. Checkpoints that lie there already are counted again.
        """
        if self.store is None:
            return {self.out: self.run_folder}
        whole = self.whole_store
        rest = None if whole is None else max(0, whole - self.stored)
        return {self.store: rest, self.out: self.run_folder}


@typed
def data_bytes(config: RunConfig, *, width: int, training: TrainingBytes, window_batches: int) -> DataBytes:
    """Count what the data need; whole-run numbers that depend on the length take `data.n_tokens` as it.

    A store holds the kept rows of one pass, however many epochs follow. Leading positions and special tokens
    are not kept, so that `n_rows` is an upper bound but for the end of the last document of each text.

    Args:
        config: The run.
        width: Columns over all sources.
        training: What the whole crosscoder holds while it trains.
        window_batches: Batches of the buffer's window, which may be ahead where the run gives no number.
    """
    itemsize = config.system.torch_dtype.itemsize
    row, data = width * itemsize, config.data
    is_background = config.system.overlap != "none"
    n_ahead = config.system.prefetch_batches or window_batches
    store = config.system.store
    folders = [config.out] if store is None else [store, config.out]
    state = training.parameters + training.optimizer + training.calibration_batches + training.buffers
    return DataBytes(
        row=row + ID_BYTES,
        n_rows=data.n_tokens,
        store=store,
        stored=0 if store is None else sum(p.stat().st_size for p in Path(store).glob("shard-*.safetensors")),
        out=config.out,
        checkpoint=state,
        n_checkpoints=_n_checkpoints(config),
        crosscoder=training.parameters,
        token_ids=0 if data.n_tokens is None else ID_BYTES * (data.n_tokens + data.held_out_tokens),
        in_flight=n_ahead * data.batch_tokens * row if is_background else 0,
        free={folder: shutil.disk_usage(existing_folder(folder)).free for folder in folders},
    )


def _n_checkpoints(config: RunConfig) -> int:
    """Those kept, the one being written, and the milestones of a run whose length is known."""
    training, data = config.training, config.data
    if not training.checkpoint_every_steps:
        return 0
    n_steps = -(-(data.n_tokens or 0) * data.epochs // data.batch_tokens)
    every = training.milestone_every_steps
    return training.checkpoints_kept + 1 + (n_steps // every if every else 0)


@typed
def existing_folder(folder: str | Path) -> Path:
    """The folder itself, or the nearest one above it that exists.

    Args:
        folder: May be yet to be made.
    """
    path = Path(os.path.abspath(Path(folder).expanduser()))
    return next(place for place in (path, *path.parents) if place.is_dir())
