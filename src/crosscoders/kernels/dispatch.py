"""Which kernels run a training step, and why."""

import importlib
import importlib.util
import logging
import os
from dataclasses import dataclass
from typing import final

from crosscoders._typing import typed
from crosscoders.errors import KernelUnavailableError
from crosscoders.kernels.cpu.step import CpuStep
from crosscoders.kernels.dense import DenseStep
from crosscoders.kernels.step import StepKernels, StepWeights

BACKENDS = ("auto", "reference", "dense", "cpu", "triton")

# A gathered row costs bandwidth, a dense one arithmetic: sparse wins while k / n_latents is below this.
# CPU: 2 threads of an EPYC (Zen 5), torch 2.13, width 512, 8192 latents, batch 1024, 2026-11-22; k = 1024:
# 158 (float32) and 153 ms (bfloat16) sparse, 210 and 186 dense; k = 2048: 270 and 279, then 261 and 191.
# CUDA: derived from 5.5 TB/s of second-level cache and 800 TFLOP/s of an H100, not yet measured.
_BREAK_EVEN = {
    ("cpu", "float32"): 0.23,
    ("cpu", "bfloat16"): 0.16,
    ("cuda", "float32"): 0.0069,
    ("cuda", "bfloat16"): 0.0069,
}

_logger = logging.getLogger(__name__)
_announced: set[str] = set()


@final
@dataclass(frozen=True, kw_only=True)
class StepShape:
    """What the choice of kernels depends on.

    Args:
        device: Device of the weights.
        n_latents: Number of latents.
        k: Latents per token, on average.
        precision: "float32" or "bfloat16".
    """

    device: str
    n_latents: int
    k: int
    precision: str

    @property
    def break_even(self) -> int:
        """Latents per token at which dense and sparse steps are about equally fast."""
        return round(_BREAK_EVEN[self.device.split(":")[0], self.precision] * self.n_latents)


@typed
def choose_backend(backend: str = "auto", *, shape: StepShape) -> str:
    """Name the kernels that a request leads to.

    Args:
        backend: "auto" takes the fastest and logs why once; any other name is a demand: "dense", "cpu" and
            "triton" are steps without autograd, "reference" is autograd over the library's functions.
        shape: The step to run.

    Returns:
        "dense", "cpu", "triton" or "reference".

    Raises:
        ValueError: No backend has this name.
        KernelUnavailableError: The named backend cannot run here.
    """
    if backend not in BACKENDS:
        raise ValueError(f"kernels: no backend is named {backend!r}; the backends are {list(BACKENDS)}.")
    if backend == "auto":
        chosen, reason = _best(shape)
        announce(f"kernels: {_sentence(chosen, reason)}")
        return chosen
    reason = _refusal(backend, shape)
    if reason is not None:
        raise KernelUnavailableError(
            f"kernels: backend {backend!r} was asked for, but {reason}; use backend='auto'."
        )
    return backend


@typed
def explain(shape: StepShape) -> str:
    """Say in one sentence which kernels run a training step of this shape and why.

    Args:
        shape: The step to run.

    Returns:
        One sentence.
    """
    return _sentence(*_best(shape))


def make_step(backend: str, weights: StepWeights, *, precision: str) -> StepKernels:
    """Make the kernels of a backend that `choose_backend` named.

    Args:
        backend: "dense", "cpu" or "triton".
        weights: Parameters and moments, which the step updates in place.
        precision: "float32" or "bfloat16".
    """
    low = precision == "bfloat16"
    if backend == "triton":
        module = importlib.import_module("crosscoders.kernels.triton.step")
        return module.TritonStep(weights, is_low_precision=low)
    return {"cpu": CpuStep, "dense": DenseStep}[backend](weights, is_low_precision=low)


def _best(shape: StepShape) -> tuple[str, str]:
    name = "cpu" if shape.device == "cpu" else "triton"
    refusal = _refusal(name, shape)
    if refusal is not None:
        return "dense", f"backend {name!r} is not available: {refusal}"
    if shape.k > shape.break_even:
        return "dense", f"k={shape.k} lies above the break-even of about {shape.break_even} latents per token"
    return name, f"k={shape.k} lies below the break-even of about {shape.break_even} latents per token"


def _sentence(backend: str, reason: str) -> str:
    what = {
        "cpu": "selection by NumPy, gathers by embedding_bag, Adam group by group",
        "triton": "Triton kernels after one dense encoder product",
        "dense": "dense matrix products and PyTorch's fused Adam",
    }
    return f"backend {backend!r} ({what[backend]}), because {reason}."


def _refusal(backend: str, shape: StepShape) -> str | None:
    """Why a backend cannot run here, or None."""
    device = shape.device.split(":")[0]
    if backend == "cpu" and device != "cpu":
        return f"the weights are on {shape.device}"
    if backend != "triton":
        return None
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if device != "cuda" and not _interprets():
        return f"the weights are on {shape.device} and Triton needs CUDA"
    return None


def _interprets() -> bool:
    """Triton's own switch for running kernels on the CPU, for tests; read where Triton itself reads it."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def announce(text: str) -> None:
    """Log a choice at INFO, once."""
    if text not in _announced:
        _announced.add(text)
        _logger.info(text)
