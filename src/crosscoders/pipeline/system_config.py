"""`SystemConfig`: where rows are kept, what runs beside what, and on how many ranks."""

from collections.abc import Collection
from dataclasses import dataclass

import torch

OVERLAPS = ("none", "process", "thread")
LOGGERS = ("tensorboard", "trackio", "wandb")
_ROW_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class SystemConfig:
    """The section [system] of a run: disk, overlap, ranks and loggers.

    But for `rows_dtype`, which rounds what is trained on, nothing here changes which rows are served or in
    which order.

    Args:
        store: Folder of an `ActivationStore`; rows come from it, and what it lacks is harvested into it. None
            keeps nothing on disk.
        rows_dtype: "bfloat16" or "float32": dtype in which buffer and store keep rows.
        shard_bytes: Size that one file of the store aims at.
        overlap: "thread" or "process" harvests in the background while the crosscoder trains; "none" takes
            turns.
        prefetch_batches: Batches that the background may be ahead; None for one window of the buffer.
        latent_shards: Under `torchrun`, ranks over which the latents are split; the others split the tokens.
        loggers: Any of "tensorboard", "trackio", "wandb"; a CSV file is always written.

    Raises:
        ValueError: A value out of range, or a name that is none of those listed.
    """

    store: str | None = None
    rows_dtype: str = "bfloat16"
    shard_bytes: int = 1 << 28
    overlap: str = "none"
    prefetch_batches: int | None = None
    latent_shards: int = 1
    loggers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("shard_bytes", "prefetch_batches", "latent_shards"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"SystemConfig: {name} must be at least 1, got {value}.")
        if self.store == "":
            raise ValueError("SystemConfig: store is empty; name a folder, or leave it out.")
        _require_one_of("rows_dtype", self.rows_dtype, _ROW_DTYPES)
        _require_one_of("overlap", self.overlap, OVERLAPS)
        for logger in self.loggers:
            _require_one_of("loggers", logger, LOGGERS)
        if len(set(self.loggers)) < len(self.loggers):
            raise ValueError(f"SystemConfig: loggers names one twice: {list(self.loggers)}.")

    @property
    def torch_dtype(self) -> torch.dtype:
        """Dtype of the rows that are kept."""
        return _ROW_DTYPES[self.rows_dtype]


def _require_one_of(name: str, got: str, known: Collection[str]) -> None:
    if got not in known:
        raise ValueError(f"SystemConfig: {name} must be one of {sorted(known)}, got {got!r}.")
