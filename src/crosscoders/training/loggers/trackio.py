"""Metrics for trackio, which keeps them on this machine."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from crosscoders._typing import typed
from crosscoders.training.loggers.base import Logger, import_backend


@final
class TrackioLogger(Logger):
    """Logs to trackio's local database (`TRACKIO_DIR`), which `trackio show` displays.

    trackio itself says where else metrics go (`TRACKIO_SPACE_ID`, `TRACKIO_SERVER_URL`). Everything runs in a
    thread of its own. A resumed run goes on under the same name and leaves out the steps that are there
    already, whose numbers are the same. Needs the extra `trackio`.

    Args:
        folder: Run folder; its name is the first part of the run's name.
        project: Project.
        config: Numbers of the run to show beside its metrics.

    Raises:
        ImportError: The package trackio is not installed.
    """

    in_background = True

    @typed
    def __init__(
        self, folder: Path | str, *, project: str = "crosscoders", config: Mapping[str, Any] | None = None
    ) -> None:
        self.project, self.config = project, dict(config or {})
        self.name = f"{Path(folder).resolve().name}-{secrets.token_hex(4)}"
        self._backend = import_backend("trackio", extra="trackio")
        self._run: Any = None
        self._first_step = 0

    def start(self, *, step: int) -> None:
        """Open the run, or go on with it.

        Args:
            step: Steps that the run has behind it.
        """
        self._run = self._backend.init(
            project=self.project,
            name=self.name,
            config=self.config,
            resume="allow" if step else "never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        # trackio has no public word for the last step that it holds.
        self._first_step = getattr(self._run, "_next_step", 0) if step else 0

    def write(self, values: dict[str, int | float], *, step: int) -> None:
        """Log the metrics of a step that is not there yet.

        Args:
            values: Metrics by name.
            step: Steps done.
        """
        if step >= self._first_step:
            self._run.log(values, step=step)

    def close(self) -> None:
        """Write what is waiting, and finish the run."""
        if self._run is not None:
            self._run.finish()
            self._run = None

    def state_dict(self) -> dict[str, Any]:
        """The name of the run."""
        return {"name": self.name}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on under the same name.

        Args:
            state: A value of `state_dict`.
        """
        self.name = state["name"]
