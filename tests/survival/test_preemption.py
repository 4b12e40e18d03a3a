"""SIGTERM at every place of a run: it ends with a checkpoint, and what resumes is the undisturbed run."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from torch import Tensor

from crosscoders.training import History, Preempted, Preemption, Trainer, fit_many
from crosscoders.training.checkpoints.files import has_checkpoint
from crosscoders.training.preemption import check_preempted, interruptible, uninterruptible
from tests.survival.signals import At, terminate, trainer_and_stream
from tests.training.toy_run import BATCH, N_STEPS, Stream, same_bits, toy_trainer, weights

NOWHERE = At("nowhere", 0)


@pytest.fixture(autouse=True)
def handler() -> Iterator[object]:
    before = signal.getsignal(signal.SIGTERM)
    yield before
    signal.signal(signal.SIGTERM, before)


def preempted_then_resumed(folder: Path, at: At) -> tuple[Preempted, Trainer]:
    trainer, stream = trainer_and_stream(folder, at)
    with pytest.raises(Preempted) as caught, Preemption():
        trainer.fit(stream)
    second, stream = trainer_and_stream(folder, NOWHERE)
    if has_checkpoint(folder):
        second.resume(folder)
    second.fit(stream)
    return caught.value, second


def rows_of(trainer: Trainer) -> list[dict[str, float]]:
    return [row for callback in trainer.callbacks if isinstance(callback, History) for row in callback.rows]


@pytest.mark.parametrize(
    ("place", "step", "saved"),
    [
        ("batch", 1, None),  # nothing was trained yet
        ("batch", 9, 8),
        ("step", 8, 9),  # counted from 0
        ("callback", 9, 9),
        ("evaluation", 8, 8),
        ("callback", 8, 8),  # seen when the evaluation is about to begin
        ("evaluation", N_STEPS, N_STEPS),
        ("step", N_STEPS - 1, N_STEPS),
    ],
)
def test_a_run_ends_with_a_checkpoint_and_resumes_exactly(
    tmp_path: Path, place: str, step: int, saved: int | None
) -> None:
    undisturbed, stream = trainer_and_stream(None, NOWHERE)
    undisturbed.fit(stream)
    preempted, resumed = preempted_then_resumed(tmp_path, At(place, step))
    names = [path.name for path in preempted.checkpoints]
    assert names == ([] if saved is None else [f"step-{saved:09d}"])
    assert preempted.code == 75
    assert same_bits(weights(resumed.crosscoder), weights(undisturbed.crosscoder))
    assert resumed.crosscoder.training is False
    assert rows_of(resumed) == rows_of(undisturbed)


def test_one_that_comes_after_the_last_weights_lets_the_run_end(tmp_path: Path) -> None:
    trainer, stream = trainer_and_stream(tmp_path, At("end", 0))
    with Preemption() as preemption:
        trainer.fit(stream)
    assert preemption.is_requested
    assert trainer.stop_reason == "total_tokens reached"


def test_without_a_folder_the_run_just_ends(tmp_path: Path) -> None:
    trainer, stream = trainer_and_stream(None, At("step", 5))
    with pytest.raises(Preempted, match=r"^stopped by SIGTERM\.$") as caught, Preemption(exit_code=9):
        trainer.fit(stream)
    assert (caught.value.code, trainer.step, list(tmp_path.iterdir())) == (9, 6, [])


def test_of_several_trainers_each_goes_on_where_it_was(tmp_path: Path) -> None:
    def several(at: At) -> list[Trainer]:
        folders = [tmp_path / name for name in "abc"]
        struck = trainer_and_stream(folders[1], at)[0]
        short = toy_trainer(config={"total_tokens": 3 * BATCH}, checkpoint_dir=folders[0])
        return [short, struck, toy_trainer(config={"lr": 1e-3}, checkpoint_dir=folders[2])]

    alone = several(NOWHERE)
    for trainer in alone:
        trainer.fit(Stream())
    first = several(At("callback", 7))
    with pytest.raises(Preempted) as caught, Preemption():
        fit_many(first, Stream(), batches_per_round=4)
    assert [path.name for path in caught.value.checkpoints] == ["step-000000007", "step-000000004"]
    second = several(NOWHERE)
    for trainer in second:
        trainer.resume(trainer.checkpoint_dir or "")
    assert [trainer.step for trainer in second] == [3, 7, 4]  # the first had ended
    fit_many(second, Stream(), batches_per_round=5)
    for one, other in zip(second, alone, strict=True):
        assert same_bits(weights(one.crosscoder), weights(other.crosscoder))


def test_a_producer_that_dies_of_the_same_signal_is_no_error(tmp_path: Path) -> None:
    class Dying(Stream):
        def __iter__(self) -> Iterator[Tensor]:
            for batch in super().__iter__():
                if self.next_index == 4:
                    with uninterruptible():  # as another process would, whatever this one is doing
                        terminate()
                        raise RuntimeError("the harvesting process ended with exit code -15")
                yield batch

    trainer = toy_trainer(checkpoint_dir=tmp_path)
    with pytest.raises(Preempted, match="step-000000003"), Preemption():
        trainer.fit(Dying())


def test_training_installs_no_handler(handler: object) -> None:
    toy_trainer().fit(Stream(n_steps=2))
    assert signal.getsignal(signal.SIGTERM) is handler
    with Preemption():
        assert signal.getsignal(signal.SIGTERM) is not handler
    assert signal.getsignal(signal.SIGTERM) is handler
    with uninterruptible(), interruptible():
        check_preempted()


def test_a_block_is_left_at_once_or_not_at_all() -> None:
    reached = []

    def struck() -> None:
        with Preemption():
            with uninterruptible():
                terminate()
                reached.append("the end of what must not be left")
            terminate()  # again, while what was begun is cleaned up
            reached.append("the next check")
            with interruptible():
                reached.append("never")

    with pytest.raises(Preempted):
        struck()
    assert reached == ["the end of what must not be left", "the next check"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN  # a second signal does not undo the exit code


def test_an_interruptible_block_within_is_left_at_once() -> None:
    reached = []

    def struck() -> None:
        with Preemption(), uninterruptible(), interruptible():
            reached.append("harvest")
            terminate()
            reached.append("never")

    with pytest.raises(Preempted):
        struck()
    assert reached == ["harvest"]


def test_code_that_survives_errors_does_not_survive_this() -> None:
    with pytest.raises(Preempted), Preemption(), suppress(Exception):
        terminate()


def test_a_forked_child_dies_of_it_as_ever() -> None:
    with Preemption() as preemption:
        child = os.fork()
        if child == 0:
            terminate()
            os._exit(3)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
    assert not preemption.is_requested


LATE = """
import atexit, importlib.util, os, signal, sys
atexit.register(os.kill, os.getpid(), signal.SIGTERM)  # the first is called last
spec = importlib.util.spec_from_file_location("preemption", sys.argv[1])
preemption = importlib.util.module_from_spec(spec)
spec.loader.exec_module(preemption)
with preemption.Preemption():
    pass
if len(sys.argv) > 2:
    os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize(("more", "code"), [([], 0), (["behind the block"], -signal.SIGTERM)])
def test_a_program_that_has_done_everything_is_not_killed_while_it_ends(more: list[str], code: int) -> None:
    file = sys.modules[Preemption.__module__].__file__ or ""
    assert subprocess.run([sys.executable, "-c", LATE, file, *more], check=False).returncode == code


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="between 1 and 255, got 0"):
        Preemption(exit_code=0)
    with Preemption(), pytest.raises(RuntimeError, match="at work already"), Preemption():
        pass
    failures: list[str] = []

    def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="main thread") as caught, Preemption():
            pass
        failures.append(str(caught.value))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(failures) == 1
