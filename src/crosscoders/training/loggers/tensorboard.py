"""Metrics for TensorBoard."""

from pathlib import Path
from typing import Any, final

from crosscoders._typing import typed
from crosscoders.training.loggers.base import Logger, import_backend


@final
class TensorBoardLogger(Logger):
    """Writes event files that `tensorboard --logdir` shows; nothing but a folder is needed.

    A resumed run adds a file that takes back what the interrupted one wrote about later steps. Needs the
    extra `tensorboard`.

    Args:
        folder: Folder of the event files.

    Raises:
        ImportError: The package tensorboard is not installed.
    """

    in_background = True

    @typed
    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._backend = import_backend("torch.utils.tensorboard", extra="tensorboard")
        self._writer: Any = None

    def start(self, *, step: int) -> None:
        """Open an event file.

        Args:
            step: Steps that the run has behind it; TensorBoard forgets later ones.
        """
        self._writer = self._backend.SummaryWriter(str(self.folder), purge_step=step + 1 if step else None)

    def write(self, values: dict[str, int | float], *, step: int) -> None:
        """Write one scalar per metric, and flush.

        Args:
            values: Metrics by name.
            step: Steps done.
        """
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
