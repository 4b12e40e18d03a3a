"""Laws of batches made in the background, here in a thread; a process has its own file."""

import gc
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from crosscoders.errors import CheckpointError
from crosscoders.prefetch import PrefetchedBatches, Waits
from tests.data.toy_harvester import ToyHarvester, toy_batches
from tests.data.toy_prefetch import (
    FaultyHarvester,
    Growing,
    batches_and_states,
    make_buffer,
    make_damaged,
    make_faulty,
    make_slow,
    same,
)


def harvest_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "crosscoders-harvest"]


@pytest.mark.parametrize("n_batches", [None, 1, 3, 100])
def test_a_thread_serves_the_same_batches_in_order_with_the_same_states(
    n_batches: int | None,
) -> None:
    plain, states = batches_and_states(make_buffer())
    prefetched = PrefetchedBatches(make_buffer, n_batches=n_batches)
    assert states == (got := batches_and_states(prefetched))[1]
    assert same(plain, got[0])
    assert len(plain) > 30
    assert plain[0].dtype == torch.float32
    assert not harvest_threads()


@pytest.mark.parametrize("taken", [0, 1, 7, 18, 35])
def test_resuming_is_exact_from_and_to_the_plain_buffer(taken: int) -> None:
    plain, states = batches_and_states(make_buffer())
    for resumed in (PrefetchedBatches(lambda: make_buffer(seed=9)), make_buffer(seed=9)):
        prefetched = PrefetchedBatches(make_buffer)
        for _ in zip(range(taken), prefetched):
            pass
        assert prefetched.state_dict() == states[taken]
        prefetched.close()
        resumed.load_state_dict(prefetched.state_dict())
        assert same(list(resumed), plain[taken:])


def test_a_loop_that_was_left_goes_on_even_after_closing() -> None:
    plain = list(make_buffer())
    prefetched = PrefetchedBatches(make_buffer)
    given = []
    for stop in (3, 8, len(plain)):
        for batch in prefetched:
            given.append(batch)
            if len(given) == stop:
                break
        prefetched.close()
    assert same(given, plain)
    with pytest.raises(StopIteration):
        next(prefetched)
    with pytest.raises(RuntimeError, match="all batches were served"):
        iter(prefetched)


def test_going_back_while_it_serves_drops_what_was_made_ahead() -> None:
    plain = list(make_buffer())
    prefetched = PrefetchedBatches(make_buffer, n_batches=4)
    begin = prefetched.state_dict()
    assert same([next(prefetched) for _ in range(6)], plain[:6])
    prefetched.load_state_dict(begin)
    assert same(list(prefetched), plain)


def test_length_and_sources_pass_through_before_and_after_the_first_batch() -> None:
    plain, prefetched = make_buffer(), PrefetchedBatches(make_buffer)
    assert prefetched.n_tokens == plain.n_tokens == 280
    assert prefetched.sources == plain.sources
    assert prefetched.state_dict() == plain.state_dict()  # with the scales that reading the sources found
    assert same(list(prefetched), list(plain))
    late = PrefetchedBatches(make_buffer)
    next(late)
    assert late.sources == plain.sources
    late.close()
    with PrefetchedBatches(Growing) as ignorant:
        assert ignorant.n_tokens is None
        assert not hasattr(ignorant, "sources")


def test_batches_of_any_size_and_dtype_pass() -> None:
    assert same(list(PrefetchedBatches(Growing, n_batches=2)), list(Growing()))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (make_faulty, ValueError, "toy harvest: call 5 fails"),
        (make_damaged, CheckpointError, "shard-00003: bytes differ"),
        (lambda: [torch.zeros(2, 2)], ValueError, "state_dict and load_state_dict.*got list"),
        (lambda: next(iter(())), RuntimeError, "StopIteration"),
    ],
)
def test_what_is_raised_where_batches_are_made_arrives(
    make: Any, error: type[Exception], message: str
) -> None:
    prefetched = PrefetchedBatches(make)
    with pytest.raises(error, match=message):
        list(prefetched)
    assert not harvest_threads()


def test_after_an_error_the_position_is_still_that_of_the_last_batch() -> None:
    prefetched, given = PrefetchedBatches(make_faulty), []
    plain, states = batches_and_states(make_buffer())
    with pytest.raises(ValueError, match="call 5"):
        given.extend(batch for batch in prefetched)
    n_given = states.index(prefetched.state_dict())
    assert 0 < n_given < len(plain)
    assert same(given, plain[:n_given])


def test_a_state_of_other_settings_is_refused_as_the_buffer_refuses_it() -> None:
    prefetched = PrefetchedBatches(make_buffer)
    with pytest.raises(ValueError, match="settings differ"):
        prefetched.load_state_dict(make_buffer(batch_tokens=4).state_dict())
    assert same(list(prefetched), list(make_buffer()))


def test_closing_early_ends_a_harvest_that_is_under_way() -> None:
    harvester = FaultyHarvester(pause=0.05)  # a window of seven calls
    prefetched = PrefetchedBatches(partial(make_buffer, harvester=harvester, max_bytes=1 << 16))
    next(prefetched)
    while harvester.calls <= 7:  # until the next window is under way
        time.sleep(0.005)
    prefetched.close()
    prefetched.close()
    assert harvester.calls < 14
    assert not harvest_threads()


def test_what_nobody_refers_to_ends_by_itself() -> None:
    prefetched = PrefetchedBatches(make_buffer, n_batches=1)
    next(prefetched)
    assert harvest_threads()
    del prefetched
    gc.collect()
    assert not harvest_threads()


def test_waits_say_who_waited() -> None:
    slow_harvest = PrefetchedBatches(lambda: make_slow(0.02))
    for _ in zip(range(20), slow_harvest):
        pass
    slow_harvest.close()
    waits = slow_harvest.waits
    assert waits.trainer_fraction > 0.7 > 0.1 > waits.harvest_fraction
    slow_trainer = PrefetchedBatches(make_buffer, n_batches=2)
    for _ in zip(range(20), slow_trainer):
        time.sleep(0.01)
    slow_trainer.close()
    waits = slow_trainer.waits
    assert waits.harvest_fraction > 0.7 > 0.3 > waits.trainer_fraction
    assert waits.trainer_seconds + waits.harvest_seconds < 1.2 * waits.elapsed_seconds


def test_a_trainer_that_begins_late_makes_no_wait_longer_than_the_run() -> None:
    prefetched = PrefetchedBatches(make_buffer, n_batches=2)
    iter(prefetched)  # as `Trainer.fit` does, before it starts its loggers and compiles its kernels
    assert str(prefetched.waits) == "waiting: not begun"
    time.sleep(0.1)
    for _ in zip(range(4), prefetched):
        pass
    prefetched.close()
    assert 0.5 < prefetched.waits.harvest_fraction <= 1


def test_waits_read_as_shares_of_the_time() -> None:
    assert str(Waits()) == "waiting: not begun"
    waits = Waits(trainer_seconds=1.2, harvest_seconds=4.0, elapsed_seconds=10.0)
    assert str(waits) == "waiting: trainer 12%, harvest 40%"


@pytest.mark.parametrize(("n_batches", "is_ahead"), [(None, True), (1, False)])
def test_room_for_a_window_lets_the_next_one_be_harvested_meanwhile(
    n_batches: int | None, is_ahead: bool
) -> None:
    harvester = ToyHarvester()
    make = partial(make_buffer, harvester=harvester)
    first_window = make()
    next(first_window)
    n_calls, harvester.calls = harvester.calls, 0
    with PrefetchedBatches(make, n_batches=n_batches) as prefetched:
        next(prefetched)
        time.sleep(0.3)
        assert (harvester.calls > n_calls) == is_ahead


def test_room_must_be_for_one_batch_at_least() -> None:
    with pytest.raises(ValueError, match="n_batches must be at least 1, got 0"):
        PrefetchedBatches(make_buffer, n_batches=0)


def test_a_one_shot_iterator_serves_once_and_cannot_be_resumed(tmp_path: Path) -> None:
    plain = list(make_buffer(epochs=1))
    prefetched = PrefetchedBatches(lambda: make_buffer(iter(toy_batches()), epochs=1, max_bytes=800))
    first = next(prefetched)
    prefetched.close()
    assert torch.equal(first, plain[0])
    with pytest.raises(ValueError, match="one-shot iterator"):
        next(prefetched)
