"""Pieces of one update: learning rate, clipping, and whether two runs have the same settings."""

from typing import Any

import torch
from torch import Tensor, nn

from crosscoders.losses import LossBreakdown
from crosscoders.training.config import TrainerConfig
from crosscoders.training.schedules import learning_rate_factor


def set_learning_rate(optimizer: torch.optim.Optimizer, progress: float, *, config: TrainerConfig) -> float:
    """Set each group's rate to its peak (`initial_lr`) times the schedule; give back the main rate."""
    factor = learning_rate_factor(
        progress, warmup_fraction=config.warmup_fraction, decay_fraction=config.decay_fraction
    )
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return config.lr * factor


def clip_gradients(module: nn.Module, max_norm: float, *, step: int, losses: LossBreakdown) -> Tensor:
    """Clip to a total norm and give back the norm before.

    Raises:
        RuntimeError: The norm is NaN or infinite.
    """
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), max_norm)
    if not torch.isfinite(norm):
        values = {name: float(term.value) for name, term in losses.terms.items()}
        raise RuntimeError(
            f"Trainer: the gradient norm at step {step} is {float(norm)} (losses {values}); no weight was "
            "updated. Lower lr, lengthen warmup_fraction, or look for outliers in the activations."
        )
    return norm


def check_same(what: str, *, saved: dict[str, Any], here: dict[str, Any]) -> None:
    """Raise ValueError naming the settings in which a saved run and this one differ."""
    different = sorted(key for key in saved.keys() | here.keys() if saved.get(key) != here.get(key))
    if different:
        shown = "; ".join(f"{key}: saved {saved.get(key)!r}, here {here.get(key)!r}" for key in different)
        raise ValueError(
            f"Trainer.load_state_dict: the {what} differs ({shown}); resume with the saved settings."
        )
