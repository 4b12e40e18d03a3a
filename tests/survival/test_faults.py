"""What a run says when it cannot go on, with numbers, and that what was good before is still there."""

import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from crosscoders.crosscoder import Crosscoder, CrosscoderOutput
from crosscoders.errors import DivergedError
from crosscoders.losses import LossContext, LossTerm
from crosscoders.training import StepReport, Trainer
from crosscoders.training.checkpoints.files import read_checkpoint
from crosscoders.training.faults import state_bytes
from tests.training.toy_run import BATCH, N_STEPS, Stream, same_bits, toy_trainer, weights

CHECKPOINTS = {"checkpoint_every_steps": 3, "total_tokens": N_STEPS * BATCH}


class BadBatch(Stream):
    """One batch is so large that the squared error overflows."""

    def __iter__(self) -> Iterator[Tensor]:
        for batch in super().__iter__():
            yield batch * 1e30 if self.next_index == 8 else batch


class Positioned(BadBatch):
    """Tells its position as `ActivationBuffer` does."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "epoch": 0, "window": 5, "served": 512}


class InfiniteLoss(LossTerm):
    """Infinite in the eighth step, while its gradient stays finite."""

    name = "infinite"

    def value(self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext) -> Tensor:
        return output.reconstruction.square().mean() + (torch.inf if context.step == 7 else 0)


class Hungry(Trainer):
    """Asks for more memory than there is in the eighth step."""

    def training_step(self, batch: Tensor) -> StepReport:
        if self.step == 7:
            torch.empty(1 << 58)
        return super().training_step(batch)


def assert_the_last_checkpoint_is_the_sixth_step(folder: Path, trainer: Trainer) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["step-000000003", "step-000000006"]
    saved = read_checkpoint(folder)["trainer"]
    undisturbed = toy_trainer(cls=type(trainer), config={"total_tokens": N_STEPS * BATCH})
    undisturbed.fit(Stream(n_steps=6))
    names = [name for name, _ in trainer.crosscoder.named_parameters()]
    expected = weights(undisturbed.crosscoder)
    assert same_bits({n: saved["crosscoder"][n] for n in names}, {n: expected[n] for n in names})


@pytest.mark.parametrize(
    ("stream", "place"), [(BadBatch, "at batch 8"), (Positioned, r"at batch 8 \(epoch 0, window 5, 512 of")]
)
def test_divergence_names_batch_and_place_and_keeps_the_checkpoint(
    tmp_path: Path, stream: type[Stream], place: str
) -> None:
    trainer = toy_trainer(config=CHECKPOINTS, checkpoint_dir=tmp_path)
    with pytest.raises(DivergedError, match=rf"norm at step 7 is.*{place}.*step-000000006\.") as caught:
        trainer.fit(stream())
    assert isinstance(caught.value, RuntimeError)  # as before there was a name for it
    assert_the_last_checkpoint_is_the_sixth_step(tmp_path, trainer)


def test_an_infinite_loss_is_refused_whatever_its_gradient(tmp_path: Path) -> None:
    trainer = toy_trainer(objective=[InfiniteLoss()])
    with pytest.raises(DivergedError, match=r"inf.*There is no checkpoint to go back to"):
        trainer.fit(Stream())
    assert all(bool(p.isfinite().all()) for p in trainer.crosscoder.parameters())


def test_too_little_memory_says_what_to_lower(tmp_path: Path) -> None:
    trainer = toy_trainer(cls=Hungry, config=CHECKPOINTS, checkpoint_dir=tmp_path)
    numbers = rf"64 rows and {trainer.crosscoder.n_latents} latents"
    with pytest.raises(torch.OutOfMemoryError, match=rf"step 7.*{numbers}.*Lower data.batch_tokens"):
        trainer.fit(Stream())
    assert_the_last_checkpoint_is_the_sixth_step(tmp_path, trainer)


def test_too_little_memory_for_the_harvest_is_told_apart() -> None:
    class Greedy(Stream):
        def __iter__(self) -> Iterator[Tensor]:
            yield torch.empty(1 << 58)

    with pytest.raises(torch.OutOfMemoryError, match=r"next batch was made.*data.sequences_per_harvest"):
        toy_trainer().fit(Greedy())


def test_other_errors_of_a_step_stay_as_they_are() -> None:
    class Broken(Trainer):
        def training_step(self, batch: Tensor) -> StepReport:
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match=r"^shapes do not fit$"):
        toy_trainer(cls=Broken).fit(Stream())


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 2 kB, which is how a quota or a full disk looks to who writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_cannot_be_written_is_absent(tmp_path: Path, small_files: None) -> None:
    trainer = toy_trainer(config=CHECKPOINTS, checkpoint_dir=tmp_path)
    needed = r"needs about \d[\d,]* bytes, and [\d,]+ are free there"
    with pytest.raises(OSError, match=rf"step 3 in .*{needed}.*Make room and resume"):
        trainer.fit(Stream())
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_does_not_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = toy_trainer(config=CHECKPOINTS, checkpoint_dir=tmp_path)
    trainer.fit(Stream(n_steps=8))
    size = state_bytes(trainer)
    full = toy_trainer(config=CHECKPOINTS, checkpoint_dir=tmp_path)
    full.resume(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size // 2))
    with pytest.raises(OSError, match=rf"No space left.*{size // 2:,} are free.*step-000000006"):
        full.fit(Stream())
    assert_the_last_checkpoint_is_the_sixth_step(tmp_path, full)
