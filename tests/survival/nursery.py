"""A warm process that forks children which are to be killed: a child costs its own work and no imports.

It runs as a program, so that no thread of a test session is forked with it. Each line that it reads is a
job; it answers with the child's process id, and with its exit code when it has ended.
"""

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

ROOT = Path(__file__).resolve().parents[2]


class Child:
    """A child that runs; `wait` gives its exit code, negative for a signal."""

    def __init__(self, nursery: "Nursery", pid: int) -> None:
        self.pid = pid
        self._nursery = nursery

    def wait(self) -> int:
        """Wait for its end."""
        return self._nursery.read()


class Nursery:
    """The test's side of the warm process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def fork(self, job: str, **arguments: Any) -> Child:
        """Start a child; one at a time.

        Args:
            job: "module:function".
            **arguments: Plain values for it; what it gives back, if anything, is the exit code.
        """
        self._send({"job": job, "arguments": arguments})
        return Child(self, self.read())

    def here(self, job: str, **arguments: Any) -> None:
        """Run a job in the warm process itself, so that every child has what it loads."""
        self._send({"job": job, "arguments": arguments, "is_here": True})
        assert self.read() == 0, "the job failed in the warm process; its traceback is above"

    def read(self) -> int:
        """The next answer."""
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()


@contextmanager
def nursery() -> Iterator[Nursery]:
    """A warm process for the length of a block."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.survival.nursery"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    try:
        yield Nursery(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=60)
        assert process.stdout is not None
        process.stdout.close()


def _serve(answers: IO[str]) -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("is_here"):
            print(_run(request), file=answers, flush=True)
            continue
        child = os.fork()
        if child == 0:
            os._exit(_run(request))
        print(child, file=answers, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _run(request: dict[str, Any]) -> int:
    module, _, function = request["job"].partition(":")
    try:
        return getattr(importlib.import_module(module), function)(**request["arguments"]) or 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stderr.flush()


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the jobs print goes elsewhere
    _serve(answers)
