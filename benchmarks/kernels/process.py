"""The coordinator's side of a worker process."""

import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.kernels.registry import Entry

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / ".venv-bench"
TIMEOUT_S = 600


class WorkerError(Exception):
    """A worker could not do what it was asked; the text is the reason for "n/a"."""


def python_of(entry: Entry) -> Path:
    """The Python that runs an implementation.

    Raises:
        WorkerError: Its environment is not installed.
    """
    if not entry.environment:
        return Path(sys.executable)
    python = ENVIRONMENTS / entry.environment / "bin" / "python"
    if not python.exists():
        raise WorkerError(f"not installed (no environment .venv-bench/{entry.environment}; see make bench)")
    return python


class WorkerProcess:
    """A fresh process with one implementation; use as a context manager or call `close`."""

    def __init__(self, entry: Entry, *, n_threads: int) -> None:
        self.entry = entry
        self._log = tempfile.TemporaryFile(mode="w+b")  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [str(python_of(entry)), "-m", "benchmarks.kernels.worker", entry.module, entry.distribution],
            cwd=ROOT,
            env=_environment(n_threads, is_own=not entry.environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, self._process.stdout
        self._is_ready = False
        self._failure = ""
        self.n_asked = 0

    def wait_until_ready(self) -> None:
        """Wait for the imports; if they fail, the next request says why."""
        if self._is_ready or self._failure:
            return
        try:
            self._reply()
            self._is_ready = True
        except WorkerError as reason:
            self._failure = str(reason)

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its reply.

        Raises:
            WorkerError: The worker answered with an error, died, or took longer than `TIMEOUT_S`.
        """
        self.wait_until_ready()
        if self._failure:
            raise WorkerError(self._failure)
        self.n_asked += 1
        try:
            self._requests.write((json.dumps({"do": do, **arguments}) + "\n").encode())
            self._requests.flush()
        except BrokenPipeError as err:
            raise WorkerError(self._last_words()) from err
        return self._reply()

    def close(self) -> None:
        """End the process, by force if it does not end by itself."""
        if self._process.poll() is None:
            self._requests.close()  # the end of its input ends the worker
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()

    def _reply(self) -> dict[str, Any]:
        ready, _, _ = select.select([self._replies], [], [], TIMEOUT_S)
        if not ready:
            self._process.kill()
            raise WorkerError(f"no answer within {TIMEOUT_S} s")
        line = self._replies.readline()
        if not line:
            raise WorkerError(self._last_words())
        reply = json.loads(line)
        if not reply.pop("ok"):
            raise WorkerError(reply["error"])
        return reply

    def _last_words(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f"the process ended with code {code}: {lines[-1] if lines else 'nothing on stderr'}"


def _environment(n_threads: int, *, is_own: bool) -> dict[str, str]:
    """Threads fixed before any library loads; no network, no telemetry, no interpreted kernels."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if not is_own:
        variables.pop("PYTHONPATH", None)
    threads = {name: str(n_threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return {**variables, **threads, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
