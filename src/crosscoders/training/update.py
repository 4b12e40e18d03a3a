"""Pieces of one update: learning rate, clipping, and whether two runs have the same settings."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from crosscoders.errors import DivergedError
from crosscoders.losses import LossBreakdown, LossTerm
from crosscoders.training.config import TrainerConfig
from crosscoders.training.schedules import learning_rate_factor

# Settings that only observe: a resumed run may change them.
FREE_TO_CHANGE = (
    "log_every_steps",
    "evaluate_every_steps",
    "checkpoint_every_steps",
    "checkpoints_kept",
    "milestone_every_steps",
)


def set_learning_rate(
    optimizer: torch.optim.Optimizer, progress: float, *, config: TrainerConfig, total_tokens: int
) -> float:
    """Set each group's rate to its peak (`initial_lr`) times the schedule; give back the main rate."""
    warmup, decay = config.schedule_fractions(total_tokens)
    factor = learning_rate_factor(progress, warmup_fraction=warmup, decay_fraction=decay)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return config.lr * factor


def clip_gradients(
    module: nn.Module, max_norm: float | None, *, norm: Tensor, check: Callable[[Tensor], None]
) -> Tensor:
    """Clip to a total norm, after `check` saw the norm before, which is given back; None does not clip."""
    check(norm)
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(list(module.parameters()), max_norm, norm)
    return norm


def check_norm(norm: Tensor, *, step: int, losses: LossBreakdown) -> None:
    """Raise DivergedError if a gradient norm or the loss is NaN or infinite."""
    if not (torch.isfinite(norm) & torch.isfinite(losses.total)):
        values = {name: float(term.value) for name, term in losses.terms.items()}
        raise DivergedError(
            f"Trainer: the gradient norm at step {step} is {float(norm)} (losses {values}); no weight was "
            "updated. Lower lr, lengthen warmup_fraction, or look for outliers in the activations."
        )


def run_identity(config: TrainerConfig, objective: Sequence[LossTerm]) -> dict[str, Any]:
    """Everything in which two parts of one run must agree."""
    numbers = {key: value for key, value in config.to_dict().items() if key not in FREE_TO_CHANGE}
    return {**numbers, "objective": [repr(term) for term in objective]}


def check_same(what: str, *, saved: dict[str, Any], here: dict[str, Any]) -> None:
    """Raise ValueError naming the settings in which a saved run and this one differ."""
    different = sorted(key for key in saved.keys() | here.keys() if saved.get(key) != here.get(key))
    if different:
        shown = "; ".join(f"{key}: saved {saved.get(key)!r}, here {here.get(key)!r}" for key in different)
        raise ValueError(
            f"Trainer.load_state_dict: the {what} differs ({shown}); resume with the saved settings."
        )
