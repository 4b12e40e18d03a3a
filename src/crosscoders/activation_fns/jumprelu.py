"""JumpReLU: a learned threshold per latent, trained through straight-through estimates."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crosscoders._typing import typed
from crosscoders.activation_fns.base import ActivationFn, ActivationModule


@final
@dataclass(frozen=True, kw_only=True)
class JumpReLU(ActivationFn):
    """Keep a pre-activation where it exceeds its latent's learned threshold.

    Rajamanoharan et al. 2407.14435. A straight-through bandwidth belongs to a scale of activations: 2.0
    suits sources scaled to mean norm sqrt(d_model), as here (Conerly et al., January 2025 update); the 1e-3
    of the original is for unit-scale activations. The convention is stored with the number.

    Args:
        bandwidth: Width of the window around the threshold in which the threshold receives gradient.
        initial_threshold: Start of every latent's threshold.
        bandwidth_space: "normalized": both numbers are meant in the space of scaled activations. No other
            convention exists yet.

    Raises:
        ValueError: A number that is not finite and positive, or another `bandwidth_space`.
    """

    kind: ClassVar[str] = "jumprelu"
    is_global: ClassVar[bool] = True
    bandwidth: float = 2.0
    initial_threshold: float = 0.1
    bandwidth_space: str = "normalized"

    def __post_init__(self) -> None:
        for name in ("bandwidth", "initial_threshold"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"JumpReLU: {name} must be finite and positive, got {value}.")
        if self.bandwidth_space != "normalized":
            raise ValueError(
                f"JumpReLU: bandwidth_space must be 'normalized', got {self.bandwidth_space!r}; convert "
                "a bandwidth for unit-scale activations by multiplying it with sqrt(d_model)."
            )

    @typed
    def build(self, n_latents: int) -> ActivationModule:
        """Make the module with one `log_threshold` per latent."""
        return _JumpReLU(self, n_latents)


class _JumpReLU(ActivationModule):
    def __init__(self, spec: JumpReLU, n_latents: int) -> None:
        super().__init__()
        self.bandwidth = spec.bandwidth
        self.log_threshold = nn.Parameter(torch.full((n_latents,), math.log(spec.initial_threshold)))

    def thresholds(self) -> Tensor:
        return self.log_threshold.exp()

    def forward(self, pre_acts: Tensor, selection_scale: Tensor) -> Tensor:
        return jump(pre_acts, self.thresholds(), bandwidth=self.bandwidth)


@typed
def jump(
    pre_acts: Float[Tensor, "batch latent"], threshold: Float[Tensor, " latent"], *, bandwidth: float
) -> Float[Tensor, "batch latent"]:
    """Give x * 1[x > t], with df/dx = 1[x > t] and df/dt ~ -(t / bandwidth) * 1[|x - t| < bandwidth / 2].

    Args:
        pre_acts: Pre-activations x.
        threshold: Thresholds t.
        bandwidth: Width of the rectangle kernel (Rajamanoharan et al. 2407.14435, eq. 11).

    Returns:
        The latents.
    """
    return _Jump.apply(pre_acts, threshold, bandwidth)


@typed
def step(
    pre_acts: Float[Tensor, "batch latent"], threshold: Float[Tensor, " latent"], *, bandwidth: float
) -> Float[Tensor, "batch latent"]:
    """Give 1[x > t], with no gradient to x and d/dt ~ -(1 / bandwidth) * 1[|x - t| < bandwidth / 2].

    Args:
        pre_acts: Pre-activations x.
        threshold: Thresholds t.
        bandwidth: Width of the rectangle kernel (Rajamanoharan et al. 2407.14435, eq. 12).

    Returns:
        Ones where a latent fires.
    """
    return _Step.apply(pre_acts, threshold, bandwidth)


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre_acts: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre_acts, threshold)
        ctx.bandwidth = bandwidth
        return torch.where(pre_acts > threshold, pre_acts, 0.0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grad_outputs
        pre_acts, threshold = ctx.saved_tensors
        inside = _window(pre_acts, threshold, ctx.bandwidth)
        grad_threshold = -(threshold / ctx.bandwidth) * (grad * inside).sum(dim=0)
        return grad * (pre_acts > threshold), grad_threshold, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre_acts: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre_acts, threshold)
        ctx.bandwidth = bandwidth
        return (pre_acts > threshold).to(pre_acts.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, Tensor, None]:
        (grad,) = grad_outputs
        pre_acts, threshold = ctx.saved_tensors
        inside = _window(pre_acts, threshold, ctx.bandwidth)
        return None, -(grad * inside).sum(dim=0) / ctx.bandwidth, None


def _window(pre_acts: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    return (pre_acts - threshold).abs() < bandwidth / 2
