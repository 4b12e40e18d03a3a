"""The pieces of our step by themselves, on one backend: encode and select, decode, backward with Adam."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.data import Weights
from benchmarks.kernels.implementation import Measured, timed
from benchmarks.kernels.problem import BETAS, EPS, LR, Problem
from crosscoders.kernels.adam import AdamMatrix, AdamStep
from crosscoders.kernels.dispatch import make_step
from crosscoders.kernels.step import Selection, StepWeights, UpdatePlan

STEP = AdamStep(lr=LR, beta1=BETAS[0], beta2=BETAS[1], eps=EPS, n=100)


class Calls(Measured):
    """Named calls that are timed one after the other."""

    def __init__(self, calls: dict[str, Callable[[], Any]], *, device: str) -> None:
        self.calls, self.device = calls, device

    def samples(self, n: int) -> dict[str, list[float]]:
        """Milliseconds of each."""
        return {name: timed(call, n, device=self.device) for name, call in self.calls.items()}


def step_weights(problem: Problem, weights: Weights) -> StepWeights:
    """Weights as the trainer hands them to a backend, with the moments of a run that has just begun."""
    shape, rows = problem.shape, weights.dictionary
    is_low = problem.precision == "bfloat16"
    norms = rows.new_empty(shape.n_latents, shape.n_sources)
    boundaries = tuple(range(0, shape.width + 1, shape.d_model))

    def matrix(weight: Tensor, **derived: Any) -> AdamMatrix:
        moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
        return AdamMatrix(weight=weight, boundaries=boundaries, **moments, **derived)

    def shadow() -> Tensor | None:
        return torch.empty_like(rows, dtype=torch.bfloat16) if is_low else None

    return StepWeights(
        W_enc=matrix(rows.clone(), shadow=shadow()),
        W_dec=matrix(rows.clone(), shadow=shadow(), norms=norms),
        b_enc=matrix(rows.new_zeros(1, shape.n_latents)),
        b_dec=matrix(rows.new_zeros(1, shape.width)),
    )


def build(problem: Problem, weights: Weights, batches: list[Tensor], *, option: str) -> Calls:
    """Option: the backend."""
    kernels = make_step(option, step_weights(problem, weights), precision=problem.precision)
    x, k = batches[0], problem.shape.k
    encoded = kernels.encode(x, Selection(k=k, per_row=True))
    grad = kernels.residual(encoded.latents, x)[0] * (2 / x.shape[0])

    def update(max_norm: float | None) -> Tensor:
        plan = UpdatePlan(max_norm=max_norm, extra=None, check=lambda norm: None)
        return kernels.update(grad, encoded, x, step=STEP, plan=plan)

    calls = {
        "encode, TopK": lambda: kernels.encode(x, Selection(k=k, per_row=True)),
        "encode, BatchTopK": lambda: kernels.encode(x, Selection(k=k, per_row=False)),
        "decode, residual": lambda: kernels.residual(encoded.latents, x),
        "backward, Adam": lambda: update(None),
        "backward, clip, Adam": lambda: update(1.0),
    }
    return Calls(calls, device=problem.device)
