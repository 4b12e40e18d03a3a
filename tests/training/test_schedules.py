"""Schedules in tokens and in parts of the run, and which numbers a resumed run may change."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from crosscoders.training import Callback, StepReport, Trainer, TrainerConfig
from crosscoders.training.schedules import learning_rate_factor, part_of_run
from tests.training.toy_run import BATCH, same_bits, toy_batches, toy_trainer, weights


class Rates(Callback):
    """Keeps the learning rate of each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        self.rates.append(report.learning_rate)


def rates(n_steps: int, **config: Any) -> list[float]:
    """Learning rates of a run of this many whole batches, with peak 1."""
    seen = Rates()
    numbers = {"lr": 1.0, "warmup_fraction": 0.0, "decay_fraction": 0.0, "max_grad_norm": 1e-6, **config}
    toy_trainer(callbacks=[seen], config=numbers).fit(toy_batches(n_steps + 1)[:n_steps])
    return seen.rates


def test_tokens_say_the_same_as_the_fraction_that_they_are() -> None:
    in_tokens = rates(8, warmup_tokens=2 * BATCH, decay_tokens=4 * BATCH)
    assert in_tokens == rates(8, warmup_fraction=0.25, decay_fraction=0.5)
    assert in_tokens == [0.25, 0.75, 1.0, 1.0, 0.875, 0.625, 0.375, 0.125]


def test_a_warm_up_in_tokens_does_not_depend_on_the_length_of_the_run() -> None:
    short, long = rates(6, warmup_tokens=4 * BATCH), rates(12, warmup_tokens=4 * BATCH)
    assert short == pytest.approx(long[:6])
    assert long[4:] == [1.0] * 8
    assert rates(6, decay_tokens=2 * BATCH)[-3:] == pytest.approx(rates(12, decay_tokens=2 * BATCH)[-3:])


def test_tokens_go_before_fractions_and_none_of_them_is_no_warm_up() -> None:
    assert rates(4, warmup_fraction=1.0, warmup_tokens=0) == [1.0] * 4
    assert TrainerConfig(warmup_tokens=5, decay_fraction=0.3).schedule_fractions(50) == (0.1, 0.3)


def test_the_rate_is_continuous_and_between_0_and_1() -> None:
    at = [i / 1000 for i in range(1001)]
    found = [learning_rate_factor(x, warmup_fraction=0.3, decay_fraction=0.9) for x in at]
    assert min(found) == 0.0
    assert 0.0 < max(found) <= 1.0
    assert max(abs(a - b) for a, b in itertools.pairwise(found)) < 1 / 300 + 1e-9


@pytest.mark.parametrize("name", ["warmup_tokens", "decay_tokens"])
def test_a_schedule_longer_than_the_run_is_refused_before_a_weight_changes(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}=101 is longer than the run of 100 tokens"):
        TrainerConfig.from_dict({name: 101, "total_tokens": 100})
    trainer = toy_trainer(config={name: 10**6})
    before = weights(trainer.crosscoder)
    with pytest.raises(ValueError, match="longer than the run of"):
        trainer.fit(toy_batches(3))
    assert same_bits(weights(trainer.crosscoder), before)
    assert trainer.step == 0
    with pytest.raises(ValueError, match=f"set {name.replace('tokens', 'fraction')}"):
        part_of_run(3, total_tokens=2, name=name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup_tokens": -1}, "warmup_tokens must be None or at least 0"),
        ({"checkpoints_kept": 0}, "checkpoints_kept must be at least 1"),
        ({"milestone_every_steps": -1}, "milestone_every_steps must not be negative"),
        ({"milestone_every_steps": 100}, "a multiple of checkpoint_every_steps=0"),
        (
            {"milestone_every_steps": 15, "checkpoint_every_steps": 10},
            "multiple of checkpoint_every_steps=10",
        ),
    ],
)
def test_numbers_out_of_range_raise(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainerConfig.from_dict(values)


def test_the_config_survives_its_plain_form() -> None:
    config = TrainerConfig(
        warmup_tokens=3,
        decay_tokens=0,
        checkpoint_every_steps=5,
        checkpoints_kept=4,
        milestone_every_steps=20,
    )
    assert TrainerConfig.from_dict(config.to_dict()) == config


def test_a_resumed_run_may_change_what_is_kept_but_not_its_schedule(tmp_path: Path) -> None:
    numbers = {"checkpoint_every_steps": 2, "warmup_tokens": BATCH}
    toy_trainer(config=numbers, checkpoint_dir=tmp_path).fit(toy_batches(4))
    kept = {**numbers, "checkpoints_kept": 5, "milestone_every_steps": 4}
    trainer = toy_trainer(config=kept, checkpoint_dir=tmp_path)
    trainer.resume(tmp_path)
    assert trainer.step == 4
    with pytest.raises(ValueError, match="warmup_tokens: saved 64, here 65"):
        toy_trainer(config={**numbers, "warmup_tokens": 65}, checkpoint_dir=tmp_path).resume(tmp_path)


def test_a_checkpoint_from_before_these_numbers_existed_still_resumes() -> None:
    state = toy_trainer(config={"total_tokens": 640}).state_dict()
    for name in ("warmup_tokens", "decay_tokens"):
        del state["run"][name]
    trainer = toy_trainer(config={"total_tokens": 640})
    trainer.load_state_dict(state)
    assert trainer.step == 0
