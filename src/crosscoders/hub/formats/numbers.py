"""Numbers that several formats need: k, thresholds, and thresholds as logarithms."""

import math

import torch
from torch import Tensor

from crosscoders.errors import CheckpointError
from crosscoders.hub.formats.files import ForeignFile
from crosscoders.hub.formats.result import Given

UNSET_NOTE = (
    "The files hold no threshold for inference, and none is guessed: the crosscoder raises in "
    "eval mode until "
    "activation.calibrate or a Trainer sets one."
)
RULE_NOTE = (
    "Latents are ranked by {rule}, which is stored as selection_weight of a folded crosscoder; unfold() and "
    "warm_start() would rank by the sum of decoder norms and ask for rank_by_norms=True."
)


def number_of_latents(file: ForeignFile, given: Given, stored: object) -> int:
    """The `k` that a file states, or the caller's where it states none.

    Raises:
        CheckpointError: The file's `k` is no positive integer.
        ValueError: Nobody says `k`, or the caller contradicts the file.
    """
    if stored is None:
        if given.k is None:
            raise ValueError(f"{file.path}: the file does not say how many latents a token keeps; give k=.")
        return given.k
    if isinstance(stored, bool) or not isinstance(stored, int | float) or not _is_count(stored):
        raise CheckpointError(f"{file.path}: k should be a positive integer, got {stored!r}.")
    if given.k not in (None, int(stored)):
        raise ValueError(f"{file.path}: the file says k={int(stored)}, the caller k={given.k}.")
    return int(stored)


def _is_count(value: float | int) -> bool:
    return math.isfinite(value) and value == int(value) and value >= 1


def threshold_state(file: ForeignFile, value: float | None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """State of BatchTopK for this threshold, with a note if it is unset (None or negative)."""
    if value is None or value < 0:
        return {"threshold": torch.tensor(-1.0)}, (UNSET_NOTE,)
    if not math.isfinite(value):
        raise CheckpointError(f"{file.path}: the threshold should be finite, got {value}.")
    return {"threshold": torch.tensor(value)}, ()


def log_threshold(threshold: Tensor) -> Tensor:
    """The smallest logarithms whose exponential is not below the thresholds; -inf for 0.

    JumpReLU stores logarithms, and x > exp(log(t)) must be false at x = t. Rounding up leaves only the
    values between t and the next such exponential to be told apart otherwise, a gap of |log t| units in the
    last place at most.
    """
    low = threshold.log()
    for _ in range(8):
        low = torch.where(low.exp() >= threshold, torch.nextafter(low, low.new_tensor(-torch.inf)), low)
    for _ in range(16):
        low = torch.where(low.exp() < threshold, torch.nextafter(low, low.new_tensor(torch.inf)), low)
    return torch.where(threshold > 0, low, low.new_tensor(-torch.inf))
