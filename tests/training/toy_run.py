"""A toy training run; also a program to be killed: `python -m tests.training.toy_run FOLDER PAUSE`."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosscoders.activation_fns import ActivationFn, BatchTopK
from crosscoders.crosscoder import Crosscoder
from crosscoders.losses import AuxK, LossTerm, Reconstruction
from crosscoders.training import Trainer, TrainerConfig
from crosscoders.training.checkpoints.files import has_checkpoint
from tests.core.toy import toy_crosscoder, toy_rows

N_STEPS, BATCH = 24, 64


def toy_batches(n_steps: int = N_STEPS) -> list[Tensor]:
    """Different rows for each step, the last batch short."""
    rows = toy_rows(n_steps * BATCH - 10, seed=11)
    return list(rows.split(BATCH))


class Stream:
    """A stateful iterable: gives each batch once, remembers its position, generates on the fly."""

    def __init__(self, n_steps: int = N_STEPS) -> None:
        self.n_tokens = n_steps * BATCH
        self.next_index = 0

    def __iter__(self) -> Iterator[Tensor]:
        """Go on where the last iteration stopped."""
        while self.next_index * BATCH < self.n_tokens:
            self.next_index += 1
            yield toy_rows(BATCH, seed=100 + self.next_index)

    def state_dict(self) -> dict[str, Any]:
        """Position after the last batch given out."""
        return {"next_index": self.next_index}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to that position."""
        self.next_index = state["next_index"]


def toy_trainer(
    *,
    activation_fn: ActivationFn | None = None,
    objective: list[LossTerm] | None = None,
    config: dict[str, Any] | None = None,
    cls: type[Trainer] = Trainer,
    **options: Any,
) -> Trainer:
    """A trainer with a quick schedule, some dead latents and calibration."""
    activation_fn = activation_fn or BatchTopK(k=3, k_initial=8)
    numbers = {"lr": 1e-2, "log_every_steps": 0, "calibration_batches": 4, "dead_after_tokens": 128}
    return cls(
        toy_crosscoder(activation_fn),
        objective or [Reconstruction(), AuxK()],
        config=TrainerConfig.from_dict({**numbers, **(config or {})}),
        **options,
    )


def weights(crosscoder: Crosscoder) -> dict[str, Tensor]:
    """A copy of every parameter and buffer."""
    return {name: tensor.clone() for name, tensor in crosscoder.state_dict().items()}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two sets of weights are equal to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def main(folder: Path, *, pause: float) -> None:
    """Train with a checkpoint after every third step, from the newest checkpoint if there is one."""
    torch.set_num_threads(1)
    trainer = toy_trainer(
        config={"checkpoint_every_steps": 3}, checkpoint_dir=folder / "checkpoints", cls=SlowTrainer
    )
    SlowTrainer.pause = pause
    if has_checkpoint(folder / "checkpoints"):
        trainer.resume(folder / "checkpoints")
    (folder / "started").touch()
    trainer.fit(Stream())
    trainer.crosscoder.save_pretrained(folder / "final")


class SlowTrainer(Trainer):
    """Leaves time to be killed."""

    pause = 0.0

    def after_optimizer_step(self) -> None:
        """Sleep."""
        time.sleep(self.pause)


if __name__ == "__main__":
    main(Path(sys.argv[1]), pause=float(sys.argv[2]))
