"""SIGKILL and flipped bits anywhere: a run goes on to the weights of the undisturbed one, or refuses."""

import json
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from crosscoders.crosscoder import Crosscoder
from crosscoders.errors import CheckpointError
from crosscoders.store import ActivationStore
from crosscoders.training import Callback, StepReport, Trainer
from tests.data.toy_harvester import ToyHarvester, served_ids, toy_batches, toy_buffer
from tests.data.toy_store import toy_store
from tests.parallel.checkpoint_run import ENDS, resume_only, train
from tests.parallel.rank_pool import on_ranks
from tests.survival.nursery import Nursery, nursery
from tests.survival.stored_run import BATCH, EPOCHS, live, open_run
from tests.survival.strike import PARTS

LIFE = "tests.survival.stored_run:live"
ANY_TIME = "any time"  # of the clock: in the middle of a call of the system, too
STRUCK = ("harvest", "store", "training", "checkpoint", "saving", ANY_TIME)
N_KILLS, N_FLIPS, LIVES_PER_RUN = 50, 200, 10


@pytest.fixture(scope="module")
def warm() -> Iterator[Nursery]:
    with nursery() as process:
        yield process


def weights_in(home: Path) -> dict[str, torch.Tensor]:
    return Crosscoder.from_pretrained(home / "final").state_dict()


def assert_same_end(home: Path, undisturbed: Path) -> None:
    """Every token once per epoch in the history that survived, in the same order, and the same weights."""
    served = json.loads((home / "served.json").read_text())
    counts = Counter(served)
    assert set(counts.values()) == {EPOCHS}
    assert sorted(counts) == sorted(int(token) for batch in toy_batches() for token in batch.flatten())
    half = len(served) // EPOCHS
    assert all(len(set(served[at : at + half])) == half for at in range(0, len(served), half))
    assert served == json.loads((undisturbed / "served.json").read_text())
    found, expected = weights_in(home), weights_in(undisturbed)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def struck(warm: Nursery, home: Path, part: str, *, rng: random.Random, events: int, seconds: float) -> int:
    """One life of a run, killed within a part of it if that has so many events; gives its exit code."""
    with_store = home.name[-1] not in "36"  # the other rows come straight from the harvest
    if part != ANY_TIME:
        where = {"part": part, "event": rng.randrange(events)}
        return warm.fork(LIFE, folder=str(home), with_store=with_store, **where).wait()
    child = warm.fork(LIFE, folder=str(home), with_store=with_store)
    time.sleep(rng.uniform(0, seconds))
    with suppress(ProcessLookupError):  # it has ended by itself
        os.kill(child.pid, signal.SIGKILL)
    return child.wait()


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(
    tmp_path: Path, warm: Nursery
) -> None:
    rng = random.Random(8)
    warm.here(LIFE, folder=str(tmp_path / "undisturbed"), with_store=False)
    assert warm.fork(LIFE, folder=str(tmp_path / "counted"), count_into=str(tmp_path / "n")).wait() == 0
    assert_same_end(tmp_path / "counted", tmp_path / "undisturbed")
    begun, events = time.monotonic(), json.loads((tmp_path / "n").read_text())
    assert warm.fork(LIFE, folder=str(tmp_path / "timed")).wait() == 0
    seconds, killed = time.monotonic() - begun, Counter[str]()
    for run in range(10 * N_KILLS):
        home = tmp_path / f"run-{run}"
        for life in range(LIVES_PER_RUN):
            part = STRUCK[(killed.total() + run + life) % len(STRUCK)]
            n = events.get(part, 0) // (4 if life else 1)  # later lives have less left to do
            code = struck(warm, home, part, rng=rng, events=n, seconds=seconds)
            assert code in (0, -signal.SIGKILL)
            if code == 0:
                break
            killed[part] += 1
        assert warm.fork(LIFE, folder=str(home)).wait() == 0
        assert_same_end(home, tmp_path / "undisturbed")
        if killed.total() >= N_KILLS and set(killed) == set(STRUCK):
            break
    assert killed.total() >= N_KILLS
    assert set(killed) == set(STRUCK) <= {*PARTS, ANY_TIME}


def flip_a_bit(folder: Path, rng: random.Random) -> tuple[Path, bytes]:
    """Flip one bit of a file in a folder; gives the file and what it held."""
    file = rng.choice([path for path in sorted(folder.iterdir()) if path.stat().st_size])
    content = file.read_bytes()
    at = rng.randrange(8 * len(content))
    file.write_bytes(content[: at // 8] + bytes([content[at // 8] ^ 1 << at % 8]) + content[at // 8 + 1 :])
    return file, content


@pytest.mark.slow
def test_a_flipped_bit_is_found_before_it_is_used(tmp_path: Path) -> None:
    live(str(tmp_path))
    undisturbed = json.loads((tmp_path / "served.json").read_text())
    on_ranks(2, train, folder=str(tmp_path / "sharded"), shape={"latents": 2}, ends_after=ENDS)
    folders = [tmp_path / "store", *(max((tmp_path / name).iterdir()) for name in ("checkpoints", "sharded"))]
    rng, served = random.Random(8), list[int]()
    for flip in range(N_FLIPS):
        folder = folders[flip % len(folders)]
        file, content = flip_a_bit(folder, rng)
        with pytest.raises(CheckpointError, match=re.escape(str(file))):
            use(tmp_path, folder, served)
        assert served == undisturbed[: len(served)]
        served.clear()
        file.write_bytes(content)
    assert ActivationStore(tmp_path / "store").verify() == []
    assert open_run(tmp_path)[1].step > 0
    assert resume_only(str(folders[-1]), {}) == ("nothing", False)


def use(home: Path, folder: Path, served: list[int]) -> None:
    """Serve all epochs from the store of a run, or resume from a checkpoint of it, or of a run on ranks."""
    if folder.name == "store":
        store = toy_store(folder, toy_batches())
        for batch in toy_buffer(toy_batches(), store=store, epochs=EPOCHS, batch_tokens=BATCH):
            served += served_ids([batch])
    elif folder.parent.name == "checkpoints":
        open_run(home)
    else:
        said, is_untouched = resume_only(str(folder), {})
        assert is_untouched, said
        raise {"CheckpointError": CheckpointError}[said.partition(":")[0]](said)


@pytest.mark.slow
def test_a_corrupt_shard_ends_the_run_and_it_goes_on_when_mended(tmp_path: Path, warm: Nursery) -> None:
    warm.fork(LIFE, folder=str(tmp_path / "undisturbed")).wait()
    batches, trainer = open_run(tmp_path)
    trainer.callbacks = (DamageAt(10, tmp_path / "store" / "shard-00000.safetensors"),)
    with pytest.raises(CheckpointError, match=r"shard-00000.safetensors: .*crosscoders store fill"):
        trainer.fit(batches)  # when the second epoch opens the shard again
    store = toy_store(tmp_path / "store", toy_batches())
    store.fill(ToyHarvester(), toy_batches())
    assert warm.fork(LIFE, folder=str(tmp_path)).wait() == 0
    assert_same_end(tmp_path, tmp_path / "undisturbed")


class DamageAt(Callback):
    """Damages a file after a step."""

    def __init__(self, step: int, file: Path) -> None:
        self.step = step
        self.file = file

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        if report.step == self.step:
            content = self.file.read_bytes()
            self.file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
