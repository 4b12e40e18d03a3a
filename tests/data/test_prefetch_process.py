"""Batches made in another process: the same laws as in a thread, and what ends which process when."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from crosscoders.activation_fns import BatchTopK
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.errors import CheckpointError
from crosscoders.losses import Reconstruction
from crosscoders.prefetch import PrefetchedBatches
from crosscoders.prefetch.serve import _failed
from crosscoders.training import Trainer, TrainerConfig, fit_many
from tests.conftest import ROOT
from tests.data.toy_prefetch import (
    Growing,
    batches_and_states,
    make_buffer,
    make_faulty,
    make_slow,
    report_pids,
    same,
)

in_process = partial(PrefetchedBatches, where="process")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool], *, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def program(folder: Path, what: str) -> subprocess.Popen[str]:
    """`toy_prefetch` in a process group of its own, after its first batch."""
    consumer = subprocess.Popen(
        [sys.executable, "-m", "tests.data.toy_prefetch", str(folder), what],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if not wait_for(lambda: (folder / "served").exists() or consumer.poll() is not None, seconds=60):
        consumer.kill()
    return consumer


def toy_trainer(batches: Any, *, seed: int = 0, **changes: Any) -> Trainer:
    config = CrosscoderConfig(sources=batches.sources, n_latents=8, activation_fn=BatchTopK(k=2))
    crosscoder = Crosscoder(config, generator=torch.Generator().manual_seed(seed))
    numbers = TrainerConfig(lr=1e-2, log_every_steps=0, checkpoint_every_steps=4 if changes else 0)
    return Trainer(crosscoder, [Reconstruction()], config=numbers, **changes)


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return list(trainer.crosscoder.state_dict().values())


def test_a_process_serves_the_same_batches_in_the_same_order_with_the_same_states() -> None:
    plain, states = batches_and_states(make_buffer())
    prefetched = in_process(make_buffer, n_batches=3)
    got = batches_and_states(prefetched)
    assert states == got[1]
    assert same(plain, got[0])
    assert prefetched.n_tokens == 280
    assert 0 < prefetched.waits.trainer_seconds <= prefetched.waits.elapsed_seconds


def test_what_cannot_be_sent_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"cannot be pickled.*functools\.partial"):
        in_process(lambda: make_buffer()).state_dict()


@pytest.mark.slow
def test_resuming_is_exact_between_all_modes() -> None:
    plain = make_buffer()
    with in_process(make_buffer) as prefetched:
        assert prefetched.n_tokens == plain.n_tokens
        assert prefetched.sources == plain.sources
        batches, states = batches_and_states(plain)
        assert prefetched.state_dict() == states[0]
        assert same([next(prefetched) for _ in range(11)], batches[:11])
    resumed = PrefetchedBatches(partial(make_buffer, seed=5))
    resumed.load_state_dict(prefetched.state_dict())
    assert same(list(resumed), batches[11:])
    prefetched.load_state_dict(states[7])
    assert same(list(prefetched), batches[7:])


@pytest.mark.slow
def test_larger_and_larger_batches_find_room() -> None:
    assert same(list(in_process(Growing, n_batches=2)), list(Growing()))


@pytest.mark.slow
def test_what_is_raised_in_the_process_arrives_with_its_message_and_place() -> None:
    with pytest.raises(ValueError, match="toy harvest: call 5 fails") as caught:
        list(in_process(make_faulty))
    assert "in harvest" in "".join(caught.value.__notes__)


class UnreadableError(Exception):
    """Its pickle cannot be read."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize("error", [CheckpointError("damaged"), UnreadableError(1, 2), StopIteration("end")])
def test_an_error_travels_as_itself_or_in_words(error: Exception) -> None:
    sent = pickle.loads(pickle.dumps(_failed(error, must_pickle=True)))
    assert str(error) in str(sent.error)
    assert type(error).__name__ in (type(sent.error).__name__, str(sent.error).partition(":")[0])
    assert not isinstance(sent.error, StopIteration)


@pytest.mark.slow
def test_a_killed_process_ends_the_consumer_with_one_clear_error(tmp_path: Path) -> None:
    prefetched = in_process(partial(report_pids, str(tmp_path)), n_batches=2)
    _, states = batches_and_states(make_buffer())
    given = [next(prefetched)]
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"\(pid \d+\) was killed by SIGKILL after.*memory ran out"):
        given.extend(batch for batch in prefetched)
    assert time.monotonic() - began < 3
    assert prefetched.state_dict() == states[len(given)]


@pytest.mark.slow
def test_closing_ends_the_process_in_the_middle_of_a_harvest(tmp_path: Path) -> None:
    prefetched = in_process(partial(report_pids, str(tmp_path)), n_batches=1)
    next(prefetched)
    pid, began = int((tmp_path / "pid").read_text()), time.monotonic()
    prefetched.close()
    assert not is_alive(pid)
    assert time.monotonic() - began < 3
    del prefetched


@pytest.mark.slow
def test_no_process_and_no_memory_outlive_a_killed_consumer(tmp_path: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    consumer = program(tmp_path, "sleep")
    pid = int((tmp_path / "pid").read_text())
    assert is_alive(pid)
    os.kill(consumer.pid, signal.SIGKILL)
    assert consumer.communicate(timeout=20)[0] == ""
    assert wait_for(lambda: not is_alive(pid), seconds=8)
    assert not {name for name in os.listdir("/dev/shm") if "crosscoders" in name} - before


@pytest.mark.slow
def test_a_signal_to_the_whole_group_leaves_the_harvest_to_its_consumer(tmp_path: Path) -> None:
    """It comes twice, first while the process is importing; the consumer then leaves without closing."""
    consumer = program(tmp_path, "save")
    output = consumer.communicate(timeout=60)[0]
    assert (consumer.returncode, output) == (0, "26 batches, told 2 times\n")
    assert not is_alive(int((tmp_path / "pid").read_text()))


@pytest.mark.slow
def test_a_run_with_checkpoints_goes_on_in_another_mode_to_the_same_weights(tmp_path: Path) -> None:
    plain = make_buffer()
    undisturbed = toy_trainer(plain)
    undisturbed.fit(plain)
    with in_process(partial(make_slow, 0.0, fail_at=12)) as failing:
        broken = toy_trainer(failing, checkpoint_dir=tmp_path)
        with pytest.raises(ValueError, match="toy harvest: call 12"):
            broken.fit(failing)
    assert 0 < broken.step < undisturbed.step
    with PrefetchedBatches(make_buffer) as batches:
        resumed = toy_trainer(batches, seed=3, checkpoint_dir=tmp_path)
        resumed.resume(tmp_path)
        resumed.fit(batches)
    assert resumed.step == undisturbed.step
    assert same(weights(resumed), weights(undisturbed))


def test_several_trainers_share_batches_from_the_background() -> None:
    plain = make_buffer()
    alone = toy_trainer(plain, seed=1)
    alone.fit(plain)
    with PrefetchedBatches(make_buffer) as batches:
        together = [toy_trainer(batches, seed=seed) for seed in (0, 1)]
        fit_many(together, batches)
    assert same(weights(together[1]), weights(alone))
