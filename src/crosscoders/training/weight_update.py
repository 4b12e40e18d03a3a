"""One update of the weights from one batch: through autograd, or by kernels that know the step."""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crosscoders.crosscoder import CrosscoderOutput
from crosscoders.losses import LossBreakdown, LossContext
from crosscoders.training.fused_step import Forward, FusedStep
from crosscoders.training.observation import silence_after
from crosscoders.training.on_ranks.spread import backward, gradient_norm
from crosscoders.training.update import check_norm, clip_gradients

if TYPE_CHECKING:
    from crosscoders.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Updated:
    """An update that was made: its forward pass, the losses, the norm of their gradient before clipping."""

    forward: CrosscoderOutput | Forward
    losses: LossBreakdown
    grad_norm: Tensor


def update(trainer: "Trainer", batch: Tensor, context: LossContext, *, n_tokens: int) -> Updated:
    """Update the weights through autograd, with whatever the trainer overrides.

    Args:
        trainer: Its weights, moments and counters change.
        batch: This rank's rows.
        context: Progress, step and dead latents.
        n_tokens: Rows of all ranks.
    """
    is_low = trainer.config.precision == "bfloat16"
    with torch.autocast(batch.device.type, dtype=torch.bfloat16, enabled=is_low):
        output = trainer.crosscoder(batch)
        losses = trainer.compute_losses(output, context)
    trainer.optimizer.zero_grad(set_to_none=True)
    losses = backward(losses, trainer, n_rows=batch.shape[0], n_tokens=n_tokens)
    check = functools.partial(check_norm, step=trainer.step, losses=losses)
    norm = gradient_norm(trainer.crosscoder)
    clip_gradients(trainer.crosscoder, trainer.config.max_grad_norm, norm=norm, check=check)
    trainer.optimizer.step()
    with torch.no_grad():
        trainer.after_optimizer_step()
        trainer.crosscoder.impose_structure()
    silence = trainer.tokens_since_fired
    silence.copy_(silence_after(silence, output.latents, n_tokens=n_tokens, ranks=trainer.ranks))
    return Updated(forward=output, losses=losses, grad_norm=norm)


def fused_update(
    fused: FusedStep, trainer: "Trainer", batch: Tensor, context: LossContext, *, n_tokens: int
) -> Updated:
    """Update the weights without autograd.

    Args:
        fused: The step, bound to the trainer's weights.
        trainer: Its weights, moments and counters change.
        batch: All rows.
        context: Progress, step and dead latents.
        n_tokens: Their number.
    """
    forward = fused.forward(batch, context)
    silence = silence_after(trainer.tokens_since_fired, forward.latents, n_tokens=n_tokens)
    fused.expect_dead(silence >= trainer.dead_after_tokens)
    check = functools.partial(check_norm, step=trainer.step, losses=forward.losses)
    norm = fused.update(forward, max_norm=trainer.config.max_grad_norm, check=check)
    trainer.tokens_since_fired.copy_(silence)
    return Updated(forward=forward, losses=forward.losses, grad_norm=norm)
