"""The numerical work of one training step, as every backend offers it.

A step without autograd: encode and select, residual, backward passes, clipping, Adam. `StepKernels` holds the
weights and what is derived from them (norms, bfloat16 copies); one subclass per backend.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim.adam import adam

from crosscoders.kernels.adam import AdamMatrix, AdamStep
from crosscoders.kernels.sparse_latents import SparseLatents


@final
@dataclass(frozen=True, kw_only=True)
class Selection:
    """How a top-k family selects while training: the largest positive `pre_acts * selection_scale`.

    Args:
        k: Entries per token, or their mean.
        per_row: True: `k` of each token; False: `k * batch` of the whole batch.
        final_k: The `k` that a schedule ends with, by which kernels are chosen; None for `k`.
    """

    k: int
    per_row: bool
    final_k: int | None = None


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class StepWeights:
    """The four parameters of a crosscoder with their Adam moments; biases are `[1, n]` views."""

    W_enc: AdamMatrix
    b_enc: AdamMatrix
    W_dec: AdamMatrix
    b_dec: AdamMatrix


@final
@dataclass(frozen=True, eq=False)
class Encoded:
    """Selected latents of a batch.

    Args:
        latents: Their values are the pre-activations; stored entries may be 0 where too few are positive.
        smallest_score: Smallest positive score selected; infinite if there is none.
    """

    latents: SparseLatents
    smallest_score: Float[Tensor, ""]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ExtraRows:
    """Gradients of a few latents besides the sparse ones, as AuxK gives them to dead latents."""

    rows: Int[Tensor, " row"]
    W_enc: Float[Tensor, "row width"]
    b_enc: Float[Tensor, " row"]
    W_dec: Float[Tensor, "row width"]

    def add_to(self, *, W_dec: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
        """Add these gradients to the whole ones; gives what the sum of squares of both matrices gains."""
        b_enc.index_add_(0, self.rows, self.b_enc)
        gain = W_dec.new_zeros((), dtype=torch.float64)
        for whole, rows in ((W_dec, self.W_dec), (W_enc, self.W_enc)):
            before = whole[self.rows]
            whole.index_copy_(0, self.rows, before + rows)
            gain += (2 * before + rows).mul(rows).sum()
        return gain


class StepKernels(ABC):
    """One backend's step on one crosscoder's weights; all activations are in normalized space.

    Args:
        weights: Parameters and moments, updated in place.
        is_low_precision: Matrix products in bfloat16, sums in float32.
    """

    def __init__(self, weights: StepWeights, *, is_low_precision: bool) -> None:
        self.weights = weights
        self.is_low_precision = is_low_precision
        # Where asking would wait: set once a gradient was not finite; nothing is written after that.
        self.has_failed: Tensor | None = None

    @abstractmethod
    def refresh(self) -> None:
        """Derive everything from the weights again, after somebody else wrote them."""

    @abstractmethod
    def encode(self, x: Tensor, selection: Selection) -> Encoded:
        """Pre-activations of `x [batch, width]` and the entries selected from them."""

    @abstractmethod
    def residual(self, latents: SparseLatents, x: Tensor) -> tuple[Tensor, Tensor]:
        """`decode(latents) + b_dec - x` in float32, and the sum of its squares."""

    @abstractmethod
    def update(
        self, grad: Tensor, encoded: Encoded, x: Tensor, *, step: AdamStep, plan: "UpdatePlan"
    ) -> Tensor:
        """Backward passes, clipping and Adam; gives the gradient norm before clipping.

        Args:
            grad: Gradient with respect to the reconstruction, `[batch, width]`.
            encoded: What `encode` gave.
            x: What was encoded.
            step: Numbers of the update, without `grad_scale` and `skip`.
            plan: Clipping and further gradients.
        """

    def selection_scale(self) -> Tensor:
        """Sum of the decoder norms of each latent."""
        assert self.weights.W_dec.norms is not None
        return self.weights.W_dec.norms.sum(dim=1)

    def guarded(self, step: AdamStep, norm: Tensor, *, plan: "UpdatePlan") -> AdamStep:
        """The step with its clip factor, after the check: now on the CPU, by a flag on the device elsewhere.

        Args:
            step: Numbers of the update.
            norm: Gradient norm, or an upper bound of it where nothing is clipped.
            plan: What to clip to and whom to tell.
        """
        if norm.device.type == "cpu":
            plan.check(norm)
        else:
            bad = ~torch.isfinite(norm)
            self.has_failed = bad if self.has_failed is None else self.has_failed | bad
        return dataclasses.replace(step, grad_scale=clip_factor(norm, plan.max_norm), skip=self.has_failed)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class UpdatePlan:
    """What surrounds the sparse gradients.

    Args:
        max_norm: Clip the total gradient to this norm; None for no clipping.
        extra: Dense gradients of some latents, added to the sparse ones.
        check: Told the gradient norm, or an upper bound of it, before anything is written; raises to stop the
            update. Not called on devices where asking would wait; see `StepKernels.has_failed`.
    """

    max_norm: float | None
    extra: ExtraRows | None
    check: Callable[[Tensor], None]


def clip_factor(norm: Tensor, max_norm: float | None) -> Tensor | None:
    """`min(1, max_norm / (norm + 1e-6))`, as in `torch.nn.utils.clip_grad_norm_`; None without clipping."""
    if max_norm is None:
        return None
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)


def adam_vector_(vector: AdamMatrix, grad: Tensor, *, step: AdamStep) -> None:
    """Adam on a bias, on any device, without host synchronization."""
    library_adam_(vector.weight, vector.exp_avg, vector.exp_avg_sq, grad.view_as(vector.weight), step=step)


def library_adam_(
    weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, grad: Tensor, *, step: AdamStep
) -> None:
    """PyTorch's fused Adam on one tensor or slice; `grad` may be overwritten."""
    adam(
        [weight],
        [grad],
        [exp_avg],
        [exp_avg_sq],
        [],
        [torch.full((), step.n - 1.0, device=weight.device)],
        fused=True,
        grad_scale=None if step.grad_scale is None else 1 / step.grad_scale,
        found_inf=None if step.skip is None else step.skip.float(),
        amsgrad=False,
        beta1=step.beta1,
        beta2=step.beta2,
        lr=step.lr,
        weight_decay=0.0,
        eps=step.eps,
        maximize=False,
    )
