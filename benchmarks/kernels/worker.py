"""A process that holds one implementation and does one thing at a time, as JSON lines on its pipes say.

    <environment's python> -m benchmarks.kernels.worker MODULE DISTRIBUTION

Requests: load (data), build, gate, samples, memory, exit. One reply per request: {"ok": true, ...} or
{"ok": false, "error": ...}. Whatever a library prints goes to stderr.
"""

import importlib
import importlib.metadata
import json
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first step of any optimizer imports it: not part of a step's memory
from torch import Tensor

from benchmarks.kernels import memory
from benchmarks.kernels.data import read_batches, read_weights
from benchmarks.kernels.implementation import Implementation, Measured, release
from benchmarks.kernels.problem import Problem, Variant
from benchmarks.kernels.reference import reference_trajectory


class Worker:
    """Answers requests; the methods are their names."""

    def __init__(self, module: str, distribution: str) -> None:
        self.module = importlib.import_module(f"benchmarks.kernels.{module}")
        self.distribution = distribution
        self.batches: list[Tensor] = []
        self.measured: Measured | None = None

    def load(self, *, problem: dict[str, Any], folder: str, n_threads: int) -> dict[str, Any]:
        """Read the input; drop what was built before."""
        torch.set_num_threads(n_threads)
        self.problem, self.folder, self.measured = Problem.from_dict(problem), Path(folder), None
        self.batches = read_batches(self.folder, device=self.problem.device)
        release(self.problem.device)
        return {"version": self._version(), "torch": torch.__version__}

    def build(self, *, option: str) -> dict[str, Any]:
        """Make the implementation with the initial weights."""
        weights = read_weights(self.folder, device=self.problem.device)
        self.measured = self.module.build(self.problem, weights, self.batches, option=option)
        return {"variant": asdict(self._implementation().variant)} if self._is_implementation() else {}

    def gate(self) -> dict[str, Any]:
        """Loss and L0 of the first steps."""
        return asdict(self._implementation().gate())

    def reference(self, *, variant: dict[str, Any]) -> dict[str, Any]:
        """The same of the float64 computation."""
        found = asdict(reference_trajectory(self.problem, self.folder, variant=Variant(**variant)))
        release(self.problem.device)
        return found

    def profile(self, *, n_steps: int) -> dict[str, Any]:
        """Milliseconds per step of each kernel."""
        return {"kernels": self._implementation().kernel_times(n_steps)}

    def release(self) -> dict[str, Any]:
        """Free everything that `load` and `build` made."""
        self.batches, self.measured = [], None
        release(self.problem.device)
        return {}

    def samples(self, *, n: int) -> dict[str, Any]:
        """Times in milliseconds by name."""
        assert self.measured is not None
        return {"samples": self.measured.samples(n)}

    def memory(self, *, option: str, n_steps: int) -> dict[str, Any]:
        """Bytes that building and the first steps need at their peak; to be asked after `load` alone."""
        before = memory.reset_peak(self.problem.device)
        self.build(option=option)
        for _ in range(n_steps):
            self._implementation().next_update()
        return {"bytes": memory.peak(self.problem.device) - before}

    def _version(self) -> str:
        """A checkout that is run without being installed has its version in the module."""
        return getattr(self.module, "VERSION", None) or importlib.metadata.version(self.distribution)

    def _is_implementation(self) -> bool:
        return isinstance(self.measured, Implementation)

    def _implementation(self) -> Implementation:
        assert isinstance(self.measured, Implementation)
        return self.measured


def serve(worker: Worker, replies: int) -> None:
    """Answer requests from stdin until "exit" or the end of the file."""
    for line in sys.stdin:
        request = json.loads(line)
        name = request.pop("do")
        if name == "exit":
            return
        try:
            answer = {"ok": True, **getattr(worker, name)(**request)}
        except Exception as error:
            # Whatever a peer raises is an answer: the coordinator reports it as the reason for "n/a".
            traceback.print_exc()
            answer = {"ok": False, "error": _shown(error)}
        os.write(replies, (json.dumps(answer) + "\n").encode())


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def main() -> None:
    """Keep the reply pipe for replies, send prints to stderr, import the implementation, serve."""
    replies = os.dup(1)
    os.dup2(2, 1)
    try:
        worker = Worker(sys.argv[1], sys.argv[2])
    except Exception as error:
        traceback.print_exc()
        os.write(replies, (json.dumps({"ok": False, "error": _shown(error)}) + "\n").encode())
        return
    os.write(replies, b'{"ok": true}\n')
    serve(worker, replies)


if __name__ == "__main__":
    main()
