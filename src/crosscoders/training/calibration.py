"""Fixing an inference threshold after the last step, on the last batches and with frozen weights."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from crosscoders.crosscoder import Crosscoder


@final
class BatchRing:
    """Copies of the last batches; part of every checkpoint, so that resuming calibrates on the same ones.

    Args:
        capacity: Batches to keep; 0 keeps none.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.batches: list[Tensor] = []

    def add(self, batch: Tensor) -> None:
        """Keep a copy: a loader may reuse the memory of a batch, or keep a whole window alive through it."""
        if self.capacity == 0:
            return
        self.batches.append(batch.detach().clone())
        del self.batches[: -self.capacity]


@torch.no_grad()
def calibrate(crosscoder: Crosscoder, batches: Sequence[Tensor]) -> None:
    """Set the activation function's inference rule from these batches.

    For BatchTopK: the mean over batches of the smallest selected score (Minder, Dumas et al. 2504.02922).

    Args:
        crosscoder: A trained crosscoder whose activation function needs calibration.
        batches: Raw activations.
    """
    scale = crosscoder.selection_scale()
    scores = [
        crosscoder.activation.calibration_score(crosscoder.pre_activations(batch), scale) for batch in batches
    ]
    crosscoder.activation.calibrate(torch.stack(scores))
