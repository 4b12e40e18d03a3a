"""SIGKILL and flipped bits anywhere: a run goes on to the weights of the undisturbed one, or refuses."""

import json
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from crosscoders.crosscoder import Crosscoder
from crosscoders.errors import CheckpointError
from crosscoders.store import ActivationStore
from crosscoders.training import Callback, StepReport, Trainer
from tests.data.toy_harvester import ToyHarvester, served_ids, toy_batches, toy_buffer
from tests.data.toy_store import toy_store
from tests.survival.nursery import Nursery, nursery
from tests.survival.stored_run import BATCH, EPOCHS, live, open_run
from tests.survival.strike import PARTS

LIFE = "tests.survival.stored_run:live"
STRUCK = ("harvest", "store", "training", "checkpoint", "saving")
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


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(
    tmp_path: Path, warm: Nursery
) -> None:
    rng = random.Random(8)
    warm.here(LIFE, folder=str(tmp_path / "undisturbed"), with_store=False)
    assert warm.fork(LIFE, folder=str(tmp_path / "counted"), count_into=str(tmp_path / "n")).wait() == 0
    assert_same_end(tmp_path / "counted", tmp_path / "undisturbed")
    events = json.loads((tmp_path / "n").read_text())
    killed: Counter[str] = Counter()
    for run in range(10 * N_KILLS):
        home = tmp_path / f"run-{run}"
        for life in range(LIVES_PER_RUN):
            part = STRUCK[(killed.total() + run + life) % len(STRUCK)]
            n = events[part] // 4 if life else events[part]  # later lives have less left to do
            code = warm.fork(LIFE, folder=str(home), part=part, event=rng.randrange(n)).wait()
            assert code in (0, -signal.SIGKILL)
            if code == 0:
                break
            killed[part] += 1
        assert warm.fork(LIFE, folder=str(home)).wait() == 0
        assert_same_end(home, tmp_path / "undisturbed")
        if killed.total() >= N_KILLS:
            break
    assert killed.total() >= N_KILLS
    assert set(killed) == set(STRUCK) <= set(PARTS)


def flip_a_bit(home: Path, rng: random.Random) -> tuple[Path, bytes]:
    """Flip one bit of the store or of the newest checkpoint; gives the file and what it held."""
    newest = max((home / "checkpoints").iterdir())
    folder = rng.choice((home / "store", newest))
    file = rng.choice([path for path in sorted(folder.iterdir()) if path.stat().st_size])
    content = file.read_bytes()
    at = rng.randrange(8 * len(content))
    file.write_bytes(content[: at // 8] + bytes([content[at // 8] ^ 1 << at % 8]) + content[at // 8 + 1 :])
    return file, content


@pytest.mark.slow
def test_a_flipped_bit_is_found_before_it_is_used(tmp_path: Path) -> None:
    live(str(tmp_path))
    undisturbed = json.loads((tmp_path / "served.json").read_text())
    rng, struck = random.Random(8), Counter[str]()
    for _ in range(N_FLIPS):
        file, content = flip_a_bit(tmp_path, rng)
        served: list[int] = []
        with pytest.raises(CheckpointError, match=file.name):
            use(tmp_path, file.parent.name, served)
        assert served == undisturbed[: len(served)]
        file.write_bytes(content)
        struck[file.parent.name] += 1
    assert len(struck) == 2
    assert ActivationStore(tmp_path / "store").verify() == []
    assert open_run(tmp_path)[1].step > 0


def use(home: Path, what: str, served: list[int]) -> None:
    """Resume from the newest checkpoint of a run, or serve all epochs from its store."""
    if what != "store":
        open_run(home)
        return
    store = toy_store(home / "store", toy_batches())
    for batch in toy_buffer(toy_batches(), store=store, epochs=EPOCHS, batch_tokens=BATCH):
        served += served_ids([batch])


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
