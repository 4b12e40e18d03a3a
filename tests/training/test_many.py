"""Several trainers on one pass over the batches: each ends as if it had been alone, to the last bit."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from crosscoders.activation_fns import ActivationFn, BatchTopK, JumpReLU, ReLU, TopK
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.losses import AuxK, DecoderNormL1, JumpReLUL0, LossTerm, Reconstruction
from crosscoders.sources import Source
from crosscoders.training import Callback, History, StepReport, Trainer, TrainerConfig, fit_many
from crosscoders.training.checkpoints.files import has_checkpoint
from tests.training.toy_run import BATCH, N_STEPS, Stream, same_bits, toy_batches, toy_trainer, weights

KINDS: list[tuple[ActivationFn, list[LossTerm]]] = [
    (BatchTopK(k=3, k_initial=8), [Reconstruction(), AuxK()]),
    (TopK(k=4), [Reconstruction()]),
    (JumpReLU(), [Reconstruction(), JumpReLUL0(weight=0.1, warmup_fraction=0.7)]),
    (ReLU(), [Reconstruction(), DecoderNormL1(weight=0.1)]),
]


class StopAt(Callback):
    """Asks for an end, or fails, after a step."""

    def __init__(self, step: int, *, error: type[BaseException] | None = None) -> None:
        self.step = step
        self.error = error

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        if report.step == self.step and self.error is not None:
            raise self.error("planned")
        if report.step == self.step:
            trainer.request_stop("enough")


class Events(Callback):
    """Keeps the names of the events."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def on_fit_start(self, trainer: Trainer) -> None:
        self.names.append("start")

    def on_fit_end(self, trainer: Trainer) -> None:
        self.names.append("end")

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        self.names.append(type(error).__name__)


class Greedy(Trainer):
    """Writes into the batch that it was given, which alone is its own business."""

    def training_step(self, batch: Tensor) -> StepReport:
        report = super().training_step(batch)
        batch.zero_()
        return report


def four_trainers(folder: Path | None = None, **options: Any) -> list[Trainer]:
    """One of each kind, with different numbers."""
    numbers = [{"lr": 1e-2}, {"lr": 3e-3}, {"total_tokens": 15 * BATCH}, {"dead_after_tokens": 64}]
    return [
        toy_trainer(
            activation_fn=activation_fn,
            objective=objective,
            config={"log_every_steps": 4, "checkpoint_every_steps": 5 if folder else 0, **config},
            callbacks=[History()],
            checkpoint_dir=folder / str(i) if folder else None,
            **options,
        )
        for i, ((activation_fn, objective), config) in enumerate(zip(KINDS, numbers))
    ]


def assert_same_runs(found: list[Trainer], expected: list[Trainer]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert same_bits(weights(one.crosscoder), weights(other.crosscoder))
        assert torch.equal(one.tokens_since_fired, other.tokens_since_fired)
        assert one.summary() == other.summary()
        assert one.crosscoder.training == other.crosscoder.training
        histories = [[c.rows for c in t.callbacks if isinstance(c, History)] for t in (one, other)]
        assert histories[0] == histories[1]


def fitted_alone(trainers: list[Trainer], batches: Callable[[], Any] = toy_batches) -> list[Trainer]:
    for trainer in trainers:
        trainer.fit(batches())
    return trainers


@pytest.mark.parametrize(("batches", "lengths"), [(toy_batches, (5, 100)), (Stream, (1, 7))])
def test_each_trains_as_if_it_were_alone(batches: Callable[[], Any], lengths: tuple[int, int]) -> None:
    alone = fitted_alone(four_trainers(), batches)
    assert [trainer.step for trainer in alone] == [N_STEPS, N_STEPS, 15, N_STEPS]
    for batches_per_round in lengths:
        together = four_trainers()
        fit_many(together, batches(), batches_per_round=batches_per_round)
        assert_same_runs(together, alone)


def test_checkpoints_are_those_of_a_run_alone(tmp_path: Path) -> None:
    together, alone = four_trainers(tmp_path / "together"), four_trainers(tmp_path / "alone")
    fit_many(together, Stream(), batches_per_round=7)
    fitted_alone(alone, Stream)
    for i in range(4):
        for step in ("step-000000015", "step-000000020") if i != 2 else ("step-000000010", "step-000000015"):
            files = [tmp_path / name / str(i) / step / "state.pt" for name in ("together", "alone")]
            states = [torch.load(file, weights_only=True) for file in files]
            assert states[0]["batches"] == states[1]["batches"]
            assert same_bits(*(state["trainer"]["crosscoder"] for state in states))


@pytest.mark.parametrize(("batches", "crash"), [(toy_batches, (1, 13)), (Stream, (3, 11))])
def test_a_run_that_crashed_in_the_middle_of_a_round_resumes_exactly(
    tmp_path: Path, batches: Callable[[], Any], crash: tuple[int, int]
) -> None:
    undisturbed = fitted_alone(four_trainers(), batches)
    first = four_trainers(tmp_path)
    first[crash[0]].callbacks += (StopAt(crash[1], error=KeyboardInterrupt),)
    with pytest.raises(KeyboardInterrupt):
        fit_many(first, batches(), batches_per_round=8)
    second = four_trainers(tmp_path)
    for i, trainer in enumerate(second):
        if has_checkpoint(tmp_path / str(i)):
            trainer.resume(tmp_path / str(i))
    assert len({trainer.step for trainer in second}) > 1  # some are further than others
    fit_many(second, batches(), batches_per_round=3)
    for trainer, other in zip(second, undisturbed):
        assert same_bits(weights(trainer.crosscoder), weights(other.crosscoder))
        assert trainer.callbacks[0].state_dict() == other.callbacks[0].state_dict()


def test_one_that_already_ended_does_not_ask_for_the_data_again(tmp_path: Path) -> None:
    served: list[int] = []

    class Counting(Stream):
        def __iter__(self) -> Iterator[Tensor]:
            for batch in super().__iter__():
                served.append(self.next_index)
                yield batch

    config = {"checkpoint_every_steps": 6}
    short = toy_trainer(config={**config, "total_tokens": 6 * BATCH}, checkpoint_dir=tmp_path / "0")
    long = toy_trainer(config=config, checkpoint_dir=tmp_path / "1", callbacks=[StopAt(18)])
    fit_many([short, long], Stream())
    again = [
        toy_trainer(config={**config, "total_tokens": 6 * BATCH}, checkpoint_dir=tmp_path / "0"),
        toy_trainer(config=config, checkpoint_dir=tmp_path / "1"),
    ]
    for i, trainer in enumerate(again):
        trainer.resume(tmp_path / str(i))
    fit_many(again, Counting())
    assert served == list(range(19, N_STEPS + 1))
    assert [trainer.step for trainer in again] == [6, N_STEPS]
    assert same_bits(weights(again[0].crosscoder), weights(short.crosscoder))


def test_a_stop_request_ends_one_run_and_not_the_others() -> None:
    together, alone = ([toy_trainer(callbacks=[StopAt(n)]) for n in (3, 11, 99)] for _ in range(2))
    fit_many(together, toy_batches(), batches_per_round=4)
    assert_same_runs(together, fitted_alone(alone))
    assert [t.stop_reason for t in together] == ["enough", "enough", "total_tokens reached"]


def test_nothing_is_read_that_nobody_needs() -> None:
    stream = Stream()
    trainers = [toy_trainer(config={"total_tokens": n * BATCH}) for n in (5, 9)]
    fit_many(trainers, stream, batches_per_round=8)
    assert stream.next_index == 9


def test_what_one_writes_into_its_batch_reaches_nobody() -> None:
    def trainers() -> list[Trainer]:
        return [toy_trainer(cls=Greedy), toy_trainer()]

    together, batches = trainers(), toy_batches()
    fit_many(together, batches)
    assert_same_runs(together, fitted_alone(trainers()))
    assert all(torch.equal(a, b) for a, b in zip(batches, toy_batches()))


def test_a_loader_may_reuse_the_memory_of_a_batch() -> None:
    def reusing() -> Iterator[Tensor]:
        memory = torch.empty(BATCH, 12)
        for batch in toy_batches():
            yield memory[: len(batch)].copy_(batch)

    config = {"total_tokens": N_STEPS * BATCH - 10}
    together, alone = ([toy_trainer(config={**config, "lr": lr}) for lr in (1e-2, 1e-3)] for _ in range(2))
    fit_many(together, reusing(), batches_per_round=6)
    assert_same_runs(together, fitted_alone(alone))


def planted(seed: int) -> Callable[[Tensor, int], Tensor]:
    """Adds numbers that depend on a row's place in the run."""

    def transform(rows: Tensor, position: int) -> Tensor:
        place = torch.arange(position, position + len(rows), dtype=torch.float64)
        return rows + torch.sin(place[:, None] * (seed + 1.5)).float()

    return transform


def test_transforms_are_told_the_rows_before(tmp_path: Path) -> None:
    batches = toy_batches()
    starts = [0, *torch.tensor([len(batch) for batch in batches]).cumsum(0).tolist()]
    alone = [toy_trainer() for _ in range(3)]
    alone[0].fit(batches)
    for trainer, seed in zip(alone[1:], (1, 2)):
        trainer.fit([planted(seed)(rows, at) for rows, (at, _) in zip(batches, pairwise(starts))])

    def trainers() -> list[Trainer]:
        config = {"checkpoint_every_steps": 5}
        return [toy_trainer(config=config, checkpoint_dir=tmp_path / str(i)) for i in range(3)]

    transforms = [None, planted(1), planted(2)]
    first = trainers()
    first[1].callbacks += (StopAt(13, error=KeyboardInterrupt),)
    with pytest.raises(KeyboardInterrupt):
        fit_many(first, toy_batches(), transforms=transforms, batches_per_round=4)
    second = trainers()
    for i, trainer in enumerate(second):
        trainer.resume(tmp_path / str(i))
    fit_many(second, toy_batches(), transforms=transforms, batches_per_round=4)
    for trainer, other in zip(second, alone):
        assert same_bits(weights(trainer.crosscoder), weights(other.crosscoder))


def test_every_trainer_hears_of_a_failure_once() -> None:
    events = [Events() for _ in range(3)]
    trainers = [toy_trainer(callbacks=[e]) for e in events]
    trainers[0].callbacks += (StopAt(2),)
    trainers[2].callbacks += (StopAt(7, error=OSError),)
    with pytest.raises(OSError, match="planned") as caught:
        fit_many(trainers, toy_batches(), batches_per_round=3)
    assert [e.names for e in events] == [["start", "end"], ["start", "OSError"], ["start", "OSError"]]
    assert caught.value.__notes__ == ["fit_many: this happened to trainer 3 of 3."]


def test_a_bad_batch_is_refused_as_in_a_run_alone() -> None:
    batches = toy_batches()
    batches[6][3, 4] = torch.nan
    with pytest.raises(ValueError, match=r"batch of step 6: source 'base' has 1 NaN"):
        fit_many([toy_trainer(), toy_trainer()], batches, batches_per_round=4)


def test_trainers_that_are_not_apart_are_refused(tmp_path: Path) -> None:
    one, history = toy_trainer(), History()
    with pytest.raises(ValueError, match="at least one trainer"):
        fit_many([], toy_batches())
    with pytest.raises(ValueError, match="trainers 1 and 2 share a trainer"):
        fit_many([one, one], toy_batches())
    with pytest.raises(ValueError, match="trainers 1 and 3 share a parameter"):
        fit_many([one, toy_trainer(), Trainer(one.crosscoder, one.objective, config=one.config)], [])
    with pytest.raises(ValueError, match="share a callback"):
        fit_many([toy_trainer(callbacks=[history]) for _ in range(2)], toy_batches())
    with pytest.raises(ValueError, match="share a checkpoint folder"):
        fit_many([toy_trainer(checkpoint_dir=tmp_path) for _ in range(2)], toy_batches())
    assert one.step == 0


def test_a_transform_may_choose_columns() -> None:
    config = CrosscoderConfig(
        sources=(Source(name="base", d_model=6),), n_latents=16, activation_fn=TopK(k=2)
    )
    together, alone = (
        Trainer(Crosscoder(config), [Reconstruction()], config=TrainerConfig(lr=1e-2)) for _ in range(2)
    )
    fit_many([toy_trainer(), together], toy_batches(), transforms=[None, lambda rows, position: rows[:, :6]])
    alone.fit([rows[:, :6] for rows in toy_batches()])
    assert_same_runs([together], [alone])


def test_transforms_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one transform .* for each of 2 trainers, got 1"):
        fit_many([toy_trainer(), toy_trainer()], toy_batches(), transforms=[None])
    with pytest.raises(ValueError, match=r"the batch's 64 rows, got \(63, 12\)"):
        fit_many([toy_trainer()], toy_batches(), transforms=[lambda rows, position: rows[1:]])
    with pytest.raises(ValueError, match="batches_per_round must be at least 1, got 0"):
        fit_many([toy_trainer()], toy_batches(), batches_per_round=0)


def test_one_that_fails_ends_alone_where_the_others_are_to_go_on() -> None:
    alone, together = fitted_alone(four_trainers()), four_trainers()
    together[1].callbacks += (StopAt(7, error=RuntimeError), Events())
    fit_many(together, toy_batches(), batches_per_round=4, keep_going=True)
    assert together[1].step == 7
    assert str(together[1].failure) == "planned"
    assert together[1].callbacks[-1].names == ["start", "RuntimeError"]
    assert [trainer.failure for trainer in (together[0], *together[2:])] == [None, None, None]
    assert_same_runs([together[0], *together[2:]], [alone[0], *alone[2:]])


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_is_nobody_s_own_failure_ends_all(error: type[BaseException]) -> None:
    together = four_trainers()
    together[1].callbacks += (StopAt(7, error=error),)
    with pytest.raises(error, match="planned"):
        fit_many(together, toy_batches(), batches_per_round=4, keep_going=True)
    assert [trainer.failure for trainer in together] == [None] * 4


def test_errors_of_the_data_end_all() -> None:
    class Damaged(Stream):
        def __iter__(self) -> Iterator[Tensor]:
            yield next(iter(super().__iter__()))
            raise ValueError("shard 7 is damaged")

    together = four_trainers()
    with pytest.raises(ValueError, match="shard 7"):
        fit_many(together, Damaged(), keep_going=True)
    assert [trainer.failure for trainer in together] == [None] * 4
