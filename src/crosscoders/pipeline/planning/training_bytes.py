"""What training a crosscoder keeps in memory, counted tensor by tensor without allocating any."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from crosscoders._typing import typed
from crosscoders.activation_fns import ActivationFn
from crosscoders.activation_fns.base import ActivationModule
from crosscoders.kernels.dispatch import StepShape
from crosscoders.losses import AuxK, LossTerm, Reconstruction
from crosscoders.pipeline.config import RunConfig, default_objective

_FLOAT32, _INT64 = torch.float32.itemsize, torch.int64.itemsize


@dataclass(frozen=True, kw_only=True)
class TrainingBytes:
    """Bytes that stay on the crosscoder's device between two training steps.

    Args:
        path: "autograd", or the kernels of the step without it ("cpu", "triton", "dense").
        parameters: Weights in float32: encoder, decoder, biases and what the activation function learns.
        gradients: `.grad` of each parameter (autograd), or the kernels' own memory for both matrices; 0 where
            gradients exist only within a step.
        optimizer: Adam's two moments and its counters.
        step_state: Decoder norms and copies of the weights that the kernels keep; the written-out latents.
        calibration_batches: The last batches, on which an inference threshold is calibrated.
        buffers: Selection weights, threshold, scales, and each latent's silence.
    """

    path: str
    parameters: int
    gradients: int
    optimizer: int
    step_state: int
    calibration_batches: int
    buffers: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "path")


@typed
def training_bytes(config: RunConfig, *, widths: Sequence[int]) -> TrainingBytes:
    """Count what `Trainer` holds for a configuration.

    Args:
        config: Dictionary, objective, batch and training.
        widths: Width of each source.
    """
    with torch.device("meta"):
        activation = config.activation_fn.build(config.n_latents)
    n_latents, width = config.n_latents, sum(widths)
    matrix = n_latents * width
    learned = [parameter.numel() for parameter in activation.parameters()]
    n_parameters = 2 * matrix + n_latents + width + sum(learned)
    path = step_path(config, activation)
    batch = config.data.batch_tokens
    kept = config.training.calibration_batches if activation.needs_calibration else 0
    return TrainingBytes(
        path=path,
        parameters=n_parameters * _FLOAT32,
        gradients=_gradients(config, path, n_parameters=n_parameters, matrix=matrix),
        optimizer=2 * n_parameters * _FLOAT32 + (4 + len(learned)) * _FLOAT32,
        step_state=_step_state(config, path, activation, n_sources=len(widths), matrix=matrix),
        calibration_batches=kept * batch * width * _FLOAT32,
        buffers=(n_latents + width) * _FLOAT32
        + sum(buffer.numel() * buffer.element_size() for buffer in activation.buffers())
        + n_latents * _INT64,
    )


@typed
def step_path(config: RunConfig, activation: ActivationModule) -> str:
    """Which way the training step goes, as `Trainer` decides it; a CUDA device is taken to have Triton.

    Args:
        config: Objective and training.
        activation: The activation function's module.

    Returns:
        "autograd", "cpu", "triton" or "dense".
    """
    known = {type(term) for term in objective_of(config)} <= {Reconstruction, AuxK}
    if config.training.backend == "reference" or activation.selection is None or not known:
        return "autograd"
    if config.training.backend != "auto":
        return config.training.backend
    device = config.device.split(":")[0]
    if device not in ("cpu", "cuda"):
        return "dense"
    selection = activation.selection
    shape = StepShape(
        device=config.device,
        n_latents=config.n_latents,
        k=selection.final_k or selection.k,
        precision=config.training.precision,
    )
    if shape.k > shape.break_even:
        return "dense"
    return "cpu" if device == "cpu" else "triton"


def objective_of(config: RunConfig) -> Sequence[LossTerm]:
    """The loss terms of a configuration, the default ones where it names none."""
    return config.objective or default_objective(config.activation_fn)


def most_active(activation_fn: ActivationFn) -> int | None:
    """Most latents per token that a run selects (annealing included); None where no number is fixed."""
    k, k_initial = (getattr(activation_fn, name, None) for name in ("k", "k_initial"))
    return None if k is None else max(k, k_initial or 0)


def has_auxk(config: RunConfig) -> bool:
    """Whether dead latents receive gradients."""
    return any(isinstance(term, AuxK) for term in objective_of(config))


def _gradients(config: RunConfig, path: str, *, n_parameters: int, matrix: int) -> int:
    if path == "autograd":
        return n_parameters * _FLOAT32
    is_held = path == "cpu" and (config.training.max_grad_norm is not None or has_auxk(config))
    return 2 * matrix * _FLOAT32 if is_held else 0


def _step_state(
    config: RunConfig, path: str, activation: ActivationModule, *, n_sources: int, matrix: int
) -> int:
    if path == "autograd":
        return 0
    is_low = config.training.precision == "bfloat16"
    low = torch.bfloat16.itemsize
    norms = config.n_latents * n_sources * _FLOAT32
    if path == "cpu":
        return norms + matrix * (low if is_low else _FLOAT32)
    copies = 2 * matrix * low if is_low else 0
    if path == "triton":
        return norms + copies
    assert activation.selection is not None  # the path says so
    n_tokens = config.data.batch_tokens
    written = n_tokens * config.n_latents * (low if is_low else _FLOAT32)
    return norms + copies + written + n_tokens * int(most_active(config.activation_fn) or 0) * _INT64
