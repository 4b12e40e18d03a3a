"""Metrics for Weights & Biases, which may be out of reach."""

import logging
import netrc
import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final
from urllib.parse import urlsplit

from crosscoders._typing import typed
from crosscoders.training.loggers.base import Logger, import_backend

log = logging.getLogger(__name__)

_SECONDS_TO_REACH = 3.0
_SECONDS_TO_BEGIN = 20.0
_SECONDS_TO_UPLOAD = 5.0


@final
class WandbLogger(Logger):
    """Logs to Weights & Biases: online where that can be, else into a folder that `wandb sync` uploads later.

    Online needs an API key (`WANDB_API_KEY` or ~/.netrc) and a server that answers; `WANDB_MODE=offline` and
    `WANDB_MODE=disabled` are heeded. It never asks for a key and never waits for an upload: everything runs
    in a thread of its own. A resumed run goes on under the same id; what its server already has about a
    step stays. Needs the extra `wandb`.

    Args:
        folder: Folder in which wandb makes its own, `wandb`.
        project: Project.
        config: Numbers of the run to show beside its metrics.

    Raises:
        ImportError: The package wandb is not installed.
    """

    in_background = True

    @typed
    def __init__(
        self, folder: Path | str, *, project: str = "crosscoders", config: Mapping[str, Any] | None = None
    ) -> None:
        self.folder, self.project, self.config = Path(folder), project, dict(config or {})
        self.run_id = secrets.token_hex(4)
        self._backend = import_backend("wandb", extra="wandb")
        self._run: Any = None

    def start(self, *, step: int) -> None:
        """Open the run, online or offline.

        Args:
            step: Steps that the run has behind it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        mode, reason = wandb_mode()
        if mode == "online":
            try:
                self._run = self._open(mode)
            except Exception as err:  # whatever it is, the folder can still be written
                mode, reason = "offline", f"it could not begin online ({type(err).__name__}: {err})"
        if self._run is None:
            self._run = self._open(mode)
        log.info("wandb: %s, because %s.", mode, reason)

    def write(self, values: dict[str, int | float], *, step: int) -> None:
        """Log the metrics; those of one step are one row.

        Args:
            values: Metrics by name.
            step: Steps done.
        """
        self._run.log(values, step=step)

    def close(self) -> None:
        """Finish the run; what is not uploaded within 5 seconds stays in the folder."""
        if self._run is not None:
            self._run.finish()
            self._run = None

    def state_dict(self) -> dict[str, Any]:
        """The id of the run."""
        return {"run_id": self.run_id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on under the same id.

        Args:
            state: A value of `state_dict`.
        """
        self.run_id = state["run_id"]

    def _open(self, mode: str) -> Any:
        settings = self._backend.Settings(
            console="off",
            silent=True,
            disable_code=True,
            disable_git=True,
            init_timeout=_SECONDS_TO_BEGIN,
            finish_timeout=_SECONDS_TO_UPLOAD,
        )
        return self._backend.init(
            project=self.project,
            name=self.folder.name,
            id=self.run_id,
            resume="allow",
            reinit="create_new",  # the members of a sweep log side by side, each to a run of its own
            dir=str(self.folder),
            config=self.config,
            mode=mode,
            settings=settings,
        )


@typed
def wandb_mode() -> tuple[str, str]:
    """How Weights & Biases can be used here without a question or a wait.

    Returns:
        "online", "offline" or "disabled", and why.
    """
    asked = os.environ.get("WANDB_MODE", "online")
    if asked in ("offline", "dryrun"):
        return "offline", f"WANDB_MODE={asked}"
    if asked == "disabled":
        return "disabled", "WANDB_MODE=disabled"
    address = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    host = address.hostname or ""
    if not (os.environ.get("WANDB_API_KEY") or _has_netrc_key(host)):
        return "offline", f"there is no API key for {host} (WANDB_API_KEY or ~/.netrc)"
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((host, port), timeout=_SECONDS_TO_REACH).close()
    except OSError as err:
        return "offline", f"{host} cannot be reached ({err})"
    return "online", f"{host} answers"


def _has_netrc_key(host: str) -> bool:
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
