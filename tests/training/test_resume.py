"""Resuming equals never having stopped, to the last bit."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from crosscoders.activation_fns import ActivationFn, BatchTopK, JumpReLU
from crosscoders.crosscoder import Crosscoder
from crosscoders.errors import CheckpointError
from crosscoders.losses import JumpReLUL0, LossTerm, Reconstruction
from crosscoders.training import Callback, History, StepReport, Trainer
from tests.training.toy_run import N_STEPS, Stream, same_bits, toy_batches, toy_trainer, weights

ROOT = Path(__file__).resolve().parents[2]


class Crash(Callback):
    """Ends the run in the middle of a step interval."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        if report.step == self.step:
            raise KeyboardInterrupt


def batches_of(kind: str) -> Iterable[Tensor]:
    return toy_batches() if kind == "list" else Stream()


def interrupted_then_resumed(folder: Path, kind: str, *, crash_at: int, **options: Any) -> Trainer:
    config = {"checkpoint_every_steps": 7, "log_every_steps": 5}
    first = toy_trainer(config=config, checkpoint_dir=folder, callbacks=[Crash(crash_at)], **options)
    with pytest.raises(KeyboardInterrupt):
        first.fit(batches_of(kind))
    second = toy_trainer(
        config={**config, "log_every_steps": 3}, checkpoint_dir=folder, callbacks=[History()], **options
    )
    with torch.no_grad():
        second.crosscoder.W_enc.normal_()
    second.resume(folder)
    assert second.step == crash_at // 7 * 7
    second.fit(batches_of(kind))
    return second


@pytest.mark.parametrize("kind", ["list", "stateful"])
@pytest.mark.parametrize("crash_at", [8, N_STEPS - 1])
def test_resume_is_exact(tmp_path: Path, kind: str, crash_at: int) -> None:
    undisturbed = toy_trainer()
    undisturbed.fit(batches_of(kind))
    resumed = interrupted_then_resumed(tmp_path, kind, crash_at=crash_at)
    assert same_bits(weights(resumed.crosscoder), weights(undisturbed.crosscoder))
    assert torch.equal(resumed.tokens_since_fired, undisturbed.tokens_since_fired)
    assert (resumed.step, resumed.tokens_seen) == (undisturbed.step, undisturbed.tokens_seen)


@pytest.mark.parametrize(
    ("activation_fn", "objective"),
    [(JumpReLU(), [Reconstruction(), JumpReLUL0(weight=0.1, warmup_fraction=0.7)])],
)
def test_resume_is_exact_for_learned_thresholds(
    tmp_path: Path, activation_fn: ActivationFn, objective: list[LossTerm]
) -> None:
    undisturbed = toy_trainer(activation_fn=activation_fn, objective=objective)
    undisturbed.fit(toy_batches())
    resumed = interrupted_then_resumed(
        tmp_path, "list", crash_at=20, activation_fn=activation_fn, objective=objective
    )
    assert same_bits(weights(resumed.crosscoder), weights(undisturbed.crosscoder))


def test_a_checkpoint_after_the_last_step_resumes_to_the_same_end(tmp_path: Path) -> None:
    config = {"checkpoint_every_steps": N_STEPS}
    first = toy_trainer(config=config, checkpoint_dir=tmp_path)
    first.fit(toy_batches())
    second = toy_trainer(config=config, checkpoint_dir=tmp_path)
    second.resume(tmp_path)
    second.fit(toy_batches())
    assert same_bits(weights(first.crosscoder), weights(second.crosscoder))


def test_history_survives_resuming(tmp_path: Path) -> None:
    config = {"checkpoint_every_steps": 10, "log_every_steps": 5}
    first = toy_trainer(config=config, checkpoint_dir=tmp_path, callbacks=[History(), Crash(12)])
    with pytest.raises(KeyboardInterrupt):
        first.fit(toy_batches())
    history = History()
    second = toy_trainer(config=config, checkpoint_dir=tmp_path, callbacks=[history])
    second.resume(tmp_path)
    second.fit(toy_batches())
    assert [row["step"] for row in history.rows] == list(range(5, N_STEPS + 1, 5))


def test_batches_without_a_position_cannot_be_resumed(tmp_path: Path) -> None:
    config = {"checkpoint_every_steps": 1, "total_tokens": N_STEPS * 64}
    first = toy_trainer(config=config, checkpoint_dir=tmp_path)
    first.fit(iter(toy_batches(3)))
    second = toy_trainer(config=config, checkpoint_dir=tmp_path)
    second.resume(tmp_path)
    with pytest.raises(ValueError, match="cannot resume at batch 3 of a list_iterator"):
        second.fit(iter(toy_batches(3)))
    second.resume(tmp_path)
    with pytest.raises(ValueError, match="cannot resume at batch 3 of a Stream"):
        second.fit(Stream())


def test_other_settings_cannot_be_resumed(tmp_path: Path) -> None:
    toy_trainer(config={"checkpoint_every_steps": 1}, checkpoint_dir=tmp_path).fit(toy_batches(3))
    with pytest.raises(ValueError, match=r"lr: saved 0\.01, here 0\.5"):
        toy_trainer(config={"lr": 0.5}).resume(tmp_path)
    with pytest.raises(ValueError, match="crosscoder config differs"):
        toy_trainer(activation_fn=BatchTopK(k=4)).resume(tmp_path)
    with pytest.raises(ValueError, match="objective"):
        toy_trainer(objective=[Reconstruction(weight=2.0)]).resume(tmp_path)
    trainer = toy_trainer()
    trainer.resume(tmp_path)
    with pytest.raises(ValueError, match="began with 182 tokens"):
        trainer.fit(toy_batches(9))


def test_a_fresh_run_does_not_mix_with_an_old_one(tmp_path: Path) -> None:
    toy_trainer(config={"checkpoint_every_steps": 1}, checkpoint_dir=tmp_path).fit(toy_batches(3))
    with pytest.raises(FileExistsError, match="another run"):
        toy_trainer(config={"checkpoint_every_steps": 1}, checkpoint_dir=tmp_path).fit(toy_batches(3))


def test_two_checkpoints_are_kept_and_damage_is_seen(tmp_path: Path) -> None:
    toy_trainer(config={"checkpoint_every_steps": 1}, checkpoint_dir=tmp_path).fit(toy_batches(5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000004", "step-000000005"]
    for name in ("state.pt", "checkpoint.json"):
        file = tmp_path / "step-000000005" / name
        original = file.read_bytes()
        for position in range(0, len(original), max(1, len(original) // 20)):
            changed = bytearray(original)
            changed[position] ^= 0x01
            file.write_bytes(changed)
            with pytest.raises(CheckpointError):
                toy_trainer().resume(tmp_path)
        file.write_bytes(original)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        toy_trainer().resume(tmp_path / "nowhere")


@pytest.mark.slow
def test_killed_at_random_points_and_resumed_the_weights_are_bit_identical(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}

    def start(folder: Path, pause: float) -> subprocess.Popen[bytes]:
        folder.mkdir(exist_ok=True)
        (folder / "started").unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.training.toy_run", str(folder), str(pause)]
        return subprocess.Popen(command, env=environment, cwd=ROOT)

    assert start(tmp_path / "whole", 0.0).wait(120) == 0
    rng = random.Random(0)
    for _ in range(3):
        process = start(tmp_path / "killed", 0.1)
        while not (tmp_path / "killed" / "started").exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(rng.uniform(0.2, 0.8))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "killed" / "final").exists()
    assert start(tmp_path / "killed", 0.0).wait(120) == 0
    ends = [Crosscoder.from_pretrained(tmp_path / name / "final") for name in ("whole", "killed")]
    assert same_bits(weights(ends[0]), weights(ends[1]))
