"""The loggers that a run's settings name."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crosscoders._typing import typed
from crosscoders.training.loggers.base import Logger
from crosscoders.training.loggers.csv_file import CsvLogger
from crosscoders.training.loggers.tensorboard import TensorBoardLogger
from crosscoders.training.loggers.trackio import TrackioLogger
from crosscoders.training.loggers.wandb import WandbLogger

_NAMES = ("tensorboard", "trackio", "wandb")


@typed
def make_loggers(
    names: Sequence[str], folder: Path | str, *, config: Mapping[str, Any] | None = None
) -> list[Logger]:
    """The CSV file, always, and the loggers that are named; all leave their files in one folder.

    Args:
        names: Any of "tensorboard", "trackio", "wandb".
        folder: Run folder: `training.csv`, `tensorboard/` and `wandb/` appear in it; trackio has a database
            of its own.
        config: Numbers of the run that wandb and trackio show beside its metrics.

    Returns:
        Callbacks for a `Trainer`; under `torchrun` only those of the first rank write anything.

    Raises:
        ValueError: An unknown name, or one name twice.
        ImportError: A logger's package is not installed.
    """
    unknown = sorted(set(names) - set(_NAMES))
    if unknown or len(set(names)) < len(names):
        raise ValueError(f"make_loggers: expected different names of {list(_NAMES)}, got {list(names)}.")
    at, plain = Path(folder), json.loads(json.dumps(dict(config or {}), default=str))
    makers = {
        "tensorboard": lambda: TensorBoardLogger(at / "tensorboard"),
        "trackio": lambda: TrackioLogger(at, config=plain),
        "wandb": lambda: WandbLogger(at, config=plain),
    }
    return [CsvLogger(at / "training.csv"), *(makers[name]() for name in names)]
