"""A toy run over a store that is filled as it goes, with all that was served kept in its checkpoints."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosscoders._io import atomic_write_json
from crosscoders.activation_fns import BatchTopK
from crosscoders.buffer import ActivationBuffer
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.losses import AuxK, Reconstruction
from crosscoders.sources import Source
from crosscoders.training import Trainer, TrainerConfig
from crosscoders.training.checkpoints.files import has_checkpoint
from tests.data.toy_harvester import served_ids, toy_batches, toy_buffer
from tests.data.toy_store import toy_store
from tests.survival.strike import count_events, strike

EPOCHS, BATCH = 2, 8


class Served:
    """Batches of a buffer; the ids of all rows that were served so far are part of the position."""

    def __init__(self, buffer: ActivationBuffer) -> None:
        self.buffer = buffer
        self.ids: list[int] = []

    @property
    def n_tokens(self) -> int | None:
        """Length of the run."""
        return self.buffer.n_tokens

    @property
    def sources(self) -> tuple[Source, ...]:
        """Sources with their scales."""
        return self.buffer.sources

    def __iter__(self) -> Iterator[Tensor]:
        """Go on where the buffer stands."""
        for batch in self.buffer:
            self.ids += served_ids([batch])
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Position and history."""
        return {"buffer": self.buffer.state_dict(), "ids": list(self.ids)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to that position, in that history."""
        self.buffer.load_state_dict(state["buffer"])
        self.ids = list(state["ids"])


def live(
    folder: str, *, part: str = "", event: int = 0, with_store: bool = True, count_into: str = ""
) -> None:
    """One life of the run, from its newest checkpoint; SIGKILL ends it at an event of a part, if given.

    Args:
        folder: Its store, checkpoints and, at the end, its crosscoder and what was served.
        part: Where to die.
        event: At which event there.
        with_store: Whether rows go through the disk.
        count_into: File for the number of events of each part.
    """
    home = Path(folder)
    home.mkdir(exist_ok=True)
    counts = count_events() if count_into else {}
    if part:
        strike(part, event, number=signal.SIGKILL, record=home / "strike.json")
    batches, trainer = open_run(home, with_store=with_store)
    trainer.fit(batches)
    trainer.crosscoder.save_pretrained(home / "final")
    atomic_write_json(home / "served.json", batches.ids)
    if count_into:
        Path(count_into).write_text(json.dumps(counts))


def open_run(home: Path, *, with_store: bool = True) -> tuple[Served, Trainer]:
    """The batches and the trainer, where the newest checkpoint left them.

    Args:
        home: Folder of the run.
        with_store: Whether rows go through the disk.
    """
    tokens = toy_batches()
    store = toy_store(home / "store", tokens) if with_store else None
    batches = Served(toy_buffer(tokens, store=store, epochs=EPOCHS, batch_tokens=BATCH))
    config = CrosscoderConfig(sources=batches.sources, n_latents=24, activation_fn=BatchTopK(k=2))
    trainer = Trainer(
        Crosscoder(config, generator=torch.Generator().manual_seed(0)),
        [Reconstruction(), AuxK()],
        config=TrainerConfig(lr=1e-2, checkpoint_every_steps=4, calibration_batches=2, dead_after_tokens=64),
        checkpoint_dir=home / "checkpoints",
    )
    if has_checkpoint(home / "checkpoints"):
        trainer.resume(home / "checkpoints")
    return batches, trainer
