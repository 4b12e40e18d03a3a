"""Trainers and batches that send SIGTERM to their own process at a chosen place."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from crosscoders.crosscoder import Crosscoder
from crosscoders.training import Callback, History, StepReport, Trainer
from tests.training.toy_run import Stream, toy_trainer

NUMBERS = {"log_every_steps": 2, "evaluate_every_steps": 4}


def terminate() -> None:
    """Send SIGTERM to this process."""
    os.kill(os.getpid(), signal.SIGTERM)


class At:
    """A place in a run: "batch", "step", "evaluation" or "callback", at or after a step."""

    def __init__(self, place: str, step: int) -> None:
        self.place = place
        self.step = step

    def here(self, place: str, step: int) -> None:
        """Send the signal if this is the place."""
        if (place, step) == (self.place, self.step):
            terminate()


class SignalingTrainer(Trainer):
    """Sends the signal in the middle of a step."""

    at: At

    def after_optimizer_step(self) -> None:
        """After the weights have changed, before the step is counted."""
        self.at.here("step", self.step)


class SignalingStream(Stream):
    """Sends the signal while a batch is made."""

    at = At("nowhere", 0)

    def __iter__(self) -> Iterator[Tensor]:
        """Before a batch is given out, when the position has already moved on."""
        for batch in super().__iter__():
            self.at.here("batch", self.next_index)
            yield batch


class SignalingCallback(Callback):
    """Sends the signal from an observer."""

    def __init__(self, at: At) -> None:
        self.at = at

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        """After a step."""
        self.at.here("callback", report.step)

    def on_fit_end(self, trainer: Trainer) -> None:
        """When everything is done."""
        self.at.here("end", 0)


def trainer_and_stream(folder: Path | None, at: At, **options: Any) -> tuple[Trainer, Stream]:
    """A toy run with a history and an evaluation, which is struck at one place."""

    def evaluation(crosscoder: Crosscoder) -> dict[str, float]:
        at.here("evaluation", trainer.step)
        return {"norm": float(crosscoder.W_dec.norm())}

    trainer = toy_trainer(
        cls=SignalingTrainer,
        config={**NUMBERS, **options},
        checkpoint_dir=folder,
        callbacks=[History(), SignalingCallback(at)],
        evaluation=evaluation,
    )
    assert isinstance(trainer, SignalingTrainer)
    trainer.at = at
    stream = SignalingStream()
    stream.at = at
    return trainer, stream
