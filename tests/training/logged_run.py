"""A short run to log, and one that is interrupted."""

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from crosscoders.training import Callback, StepReport, Trainer
from tests.core.toy import toy_rows
from tests.training.toy_run import toy_batches, toy_trainer, weights

N_STEPS = 12


def trained(callbacks: Sequence[Callback] = (), *, n_steps: int = N_STEPS, **config: Any) -> Trainer:
    """A short run that logs every second step and evaluates every fourth."""
    rows = toy_rows(50, seed=77)
    trainer = toy_trainer(
        callbacks=callbacks,
        config={"log_every_steps": 2, "evaluate_every_steps": 4, **config},
        evaluation=lambda c: {"error": float((c.reconstruct(rows) - rows).square().mean())},
    )
    trainer.fit(toy_batches(n_steps))
    return trainer


@functools.cache
def undisturbed() -> dict[str, Tensor]:
    """Weights of the run without a logger."""
    return weights(trained().crosscoder)


class Interrupt(Callback):
    """Interrupts the run after a step."""

    def __init__(self, stop_at: int | None) -> None:
        self.stop_at = stop_at

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        if report.step == self.stop_at:
            raise KeyboardInterrupt
