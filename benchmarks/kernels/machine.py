"""What the machine can do: time of the encode product alone, and bytes per second of memory."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.kernels.data import Weights
from benchmarks.kernels.implementation import Measured, timed
from benchmarks.kernels.problem import Problem

# Far larger than any cache, so that the arrays come from memory.
N_ELEMENTS = 64 * 1024 * 1024
# Bytes that each loop moves per element (4-byte elements): what it names, not what caches add.
LOOP_BYTES = {"copy": 8, "triad": 12, "update": 12}
# GPU: an array that fits the second-level cache, read so often by one kernel.
N_RESIDENT, N_RESIDENT_READS = 2 * 1024 * 1024, 64


class Machine(Measured):
    """Encode GEMMs with all memory already there, and three loops over large arrays."""

    def __init__(self, problem: Problem, weights: Weights, batches: list[Tensor]) -> None:
        self.device = problem.device
        self.calls: dict[str, Callable[[], object]] = {}
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            self.calls[f"encode GEMM {name}"] = _gemm(batches[0].to(dtype), weights.dictionary.to(dtype))
        a, b, c = (torch.ones(N_ELEMENTS, device=self.device) for _ in range(3))
        self.calls["copy"] = lambda: a.copy_(b)
        self.calls["triad"] = lambda: torch.add(b, c, alpha=0.5, out=a)
        self.calls["update"] = lambda: a.add_(b, alpha=0.5)
        if self.device != "cpu":
            resident = torch.ones(N_RESIDENT, device=self.device).expand(N_RESIDENT_READS, -1)
            self.calls["cached read"] = lambda: resident.sum(dim=1)

    def samples(self, n: int) -> dict[str, list[float]]:
        """Milliseconds of each."""
        return {name: timed(call, n, device=self.device) for name, call in self.calls.items()}


def _gemm(x: Tensor, rows: Tensor) -> Callable[[], Tensor]:
    out = torch.empty(x.shape[0], rows.shape[0], dtype=x.dtype, device=x.device)
    return lambda: torch.mm(x, rows.T, out=out)


def build(problem: Problem, weights: Weights, batches: list[Tensor], *, option: str) -> Machine:
    """No options."""
    return Machine(problem, weights, batches)
