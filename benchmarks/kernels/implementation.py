"""What a worker runs: the interface of implementations, and the step that autograd peers share."""

import gc
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.problem import BETAS, EPS, LR, Problem, Variant
from benchmarks.kernels.reference import GATE_STEPS, Trajectory

CUDA_STEPS_PER_SAMPLE = 20


class Measured(ABC):
    """Something that gives samples of times by name, in milliseconds."""

    @abstractmethod
    def samples(self, n: int) -> dict[str, list[float]]:
        """Measure `n` times."""


class Implementation(Measured):
    """A training step: subclasses say how to update and how to count.

    Args:
        problem: What to compute.
        batches: Stream of batches, used in turn.
        variant: In what the function differs from ours.
    """

    def __init__(self, problem: Problem, batches: list[Tensor], *, variant: Variant) -> None:
        self.problem, self.batches, self.variant = problem, batches, variant
        self.n_done = 0

    @abstractmethod
    def update(self, x: Tensor) -> Tensor:
        """One optimizer step; the loss before it, on the device."""

    @abstractmethod
    def l0(self, x: Tensor) -> float:
        """Non-zero latents per token for this batch, without an update."""

    def next_update(self) -> Tensor:
        """One update with the next batch of the stream."""
        x = self.batches[self.n_done % len(self.batches)]
        self.n_done += 1
        return self.update(x)

    def gate(self) -> Trajectory:
        """Loss and L0 before each of the first updates."""
        losses, l0s = [], []
        for _ in range(GATE_STEPS):
            with torch.no_grad():
                l0s.append(self.l0(self.batches[self.n_done % len(self.batches)]))
            losses.append(float(self.next_update()))
        return Trajectory(losses=losses, l0s=l0s)

    def samples(self, n: int) -> dict[str, list[float]]:
        """Milliseconds of `n` steps; on CUDA `n` means of `CUDA_STEPS_PER_SAMPLE` steps."""
        return {"step": timed(self.next_update, n, device=self.problem.device)}

    def kernel_times(self, n_steps: int) -> dict[str, float]:
        """Milliseconds per step of the longest kernels, by name; CUDA only."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(n_steps):
                self.next_update()
            torch.cuda.synchronize()
        times = {
            event.key[:80]: event.self_device_time_total / 1e3 / n_steps for event in profile.key_averages()
        }
        return dict(sorted(times.items(), key=lambda item: -item[1])[:16])


def timed(call: Callable[[], Any], n: int, *, device: str) -> list[float]:
    """Milliseconds of `n` calls; CUDA: of `n` groups of calls between two events, per call."""
    if device == "cpu":
        times = []
        for _ in range(n):
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e3)
        return times
    return [_cuda_group(call) for _ in range(n)]


def _cuda_group(call: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(CUDA_STEPS_PER_SAMPLE):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / CUDA_STEPS_PER_SAMPLE


class AutogradImplementation(Implementation):
    """Forward, backward, clip, `torch.optim.Adam`: what every peer does with its own loss.

    Args:
        problem: What to compute.
        batches: Stream of batches.
        variant: In what the function differs from ours.
        loss: Loss of a batch; runs under autocast in bfloat16.
        count: Number of non-zero latents per token of a batch.
        parameters: What Adam updates.
        foreach: Passed to Adam, as the peer's own trainer does.
    """

    def __init__(
        self,
        problem: Problem,
        batches: list[Tensor],
        *,
        variant: Variant,
        loss: Callable[[Tensor], Tensor],
        count: Callable[[Tensor], float],
        parameters: Iterable[Tensor],
        foreach: bool | None = None,
    ) -> None:
        super().__init__(problem, batches, variant=variant)
        self.loss, self.count = loss, count
        self.parameters = list(parameters)
        self.optimizer = torch.optim.Adam(self.parameters, lr=LR, betas=BETAS, eps=EPS, foreach=foreach)

    def update(self, x: Tensor) -> Tensor:
        """One optimizer step."""
        with self._autocast():
            loss = self.loss(x)
        loss.backward()
        if self.problem.case.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.problem.case.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def l0(self, x: Tensor) -> float:
        """Non-zero latents per token."""
        with self._autocast():
            return self.count(x)

    def _autocast(self) -> torch.autocast:
        is_bfloat16 = self.problem.precision == "bfloat16"
        return torch.autocast(self.problem.device, dtype=torch.bfloat16, enabled=is_bfloat16)


def release(device: str) -> None:
    """Free what the last implementation held."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
