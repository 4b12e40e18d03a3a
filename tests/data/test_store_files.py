"""The files of an activation store: readable by others, whole or not there, and damaged nowhere unnoticed."""

import errno
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from crosscoders.errors import CheckpointError
from crosscoders.sources import Source
from crosscoders.store import ActivationStore
from tests.conftest import ROOT
from tests.data.toy_harvester import ToyHarvester, toy_batches, toy_buffer
from tests.data.toy_store import buffer_from, filled_store, store_files, toy_store

FILES = ("store.json", "shard-00001.json", "shard-00001.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_safetensors_own_reader_reads_a_shard(dtype: torch.dtype, tmp_path: Path) -> None:
    store = filled_store(tmp_path, dtype=dtype, skip_positions=1)
    tensors = load_file(tmp_path / "shard-00001.safetensors")
    assert sorted(tensors) == ["batch_rows", "rows", "token_ids"]
    assert tensors["rows"].dtype == dtype
    assert tensors["batch_rows"].tolist() == [18, 18]
    assert torch.equal(tensors["rows"], torch.cat([store.read(2), store.read(3)]))
    assert torch.equal(
        tensors["token_ids"], torch.cat([tokens[:, 1:].flatten() for tokens in toy_batches()[2:4]])
    )


def flipped(folder: Path, name: str, *, bit: int) -> bytes:
    """Flip one bit of a file; gives the content that it had."""
    content = (folder / name).read_bytes()
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    (folder / name).write_bytes(changed)
    return content


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_found_before_a_row_is_used(name: str, tmp_path: Path) -> None:
    filled_store(tmp_path)
    n_bits = 8 * (tmp_path / name).stat().st_size
    for bit in range(0, n_bits, 61):  # all over the file, each of the eight in turn
        content = flipped(tmp_path, name, bit=bit)
        with pytest.raises(CheckpointError, match=name):
            ActivationStore(tmp_path).read(2)
        (tmp_path / name).write_bytes(content)
    assert ActivationStore(tmp_path).read(2).shape == (21, 4)


def test_damage_names_the_file_and_what_mends_it(tmp_path: Path) -> None:
    filled_store(tmp_path)
    flipped(tmp_path, FILES[2], bit=9000)
    for buffer in (buffer_from(ActivationStore(tmp_path)), toy_buffer(store=ActivationStore(tmp_path))):
        with pytest.raises(
            CheckpointError, match=r"shard-00001.safetensors: expected SHA-256 .*store fill CONFIG"
        ):
            list(buffer)
        assert buffer.tokens_served <= 32  # windows before it


def test_a_shard_that_stays_open_is_checked_again_in_every_epoch(tmp_path: Path) -> None:
    filled_store(tmp_path, toy_batches()[:4])  # two shards
    for buffer in (
        buffer_from(ActivationStore(tmp_path), epochs=2),
        toy_buffer(toy_batches()[:4], store=ActivationStore(tmp_path), epochs=2),
    ):
        while buffer.unique_tokens_served < 84:
            next(buffer)
        content = flipped(tmp_path, FILES[2], bit=9000)
        with pytest.raises(CheckpointError, match=r"shard-00001.safetensors: expected SHA-256"):
            list(buffer)
        (tmp_path / FILES[2]).write_bytes(content)


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-1]), Path.unlink])
def test_verify_lists_every_fault_and_fill_mends_them(
    damage: Callable[[Path], object], tmp_path: Path
) -> None:
    store = filled_store(tmp_path)
    assert store.verify() == []
    before = store_files(tmp_path)
    for name in ("shard-00000.safetensors", "shard-00001.safetensors", "shard-00003.json"):
        damage(tmp_path / name)
    faults = store.verify()
    assert [f"shard-0000{index}" in fault for index, fault in zip((0, 1, 3), faults, strict=True)] == [
        True
    ] * 3
    said: list[str] = []
    store.fill(ToyHarvester(), toy_batches(), say=said.append)
    assert store_files(tmp_path) == before
    assert store.verify() == []
    assert sum("rows" in line for line in said) == 3


def test_a_shard_of_another_store_or_place_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    filled_store(tmp_path / "a")
    filled_store(tmp_path / "b", skip_positions=1)
    shutil.copy(tmp_path / "b" / FILES[1], tmp_path / "a" / FILES[1])
    with pytest.raises(CheckpointError, match="belongs to another store or shard"):
        ActivationStore(tmp_path / "a").read(2)
    shutil.copy(tmp_path / "a" / "shard-00000.json", tmp_path / "a" / FILES[1])
    with pytest.raises(CheckpointError, match=r"belongs to another store or shard \(shard 0 "):
        ActivationStore(tmp_path / "a").read(2)


def test_a_store_json_written_anew_keeps_the_shards_that_fit(tmp_path: Path) -> None:
    before = store_files(filled_store(tmp_path).folder)
    (tmp_path / "store.json").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"store.json: .* remove it"):
        toy_store(tmp_path)
    (tmp_path / "store.json").unlink()
    assert toy_store(tmp_path).is_complete
    assert store_files(tmp_path) == before


@pytest.mark.parametrize("stop", [OSError, KeyboardInterrupt])
def test_a_stopped_writer_leaves_whole_shards_and_nothing_else(
    stop: type[BaseException], tmp_path: Path
) -> None:
    class Stopped(ToyHarvester):
        def harvest(self, tokens: Tensor) -> Tensor:
            if self.calls == 5:
                raise stop
            return super().harvest(tokens)

    whole = store_files(filled_store(tmp_path / "whole").folder)
    store = toy_store(tmp_path / "part")
    with pytest.raises(stop):
        store.fill(Stopped(), toy_batches())
    part = store_files(store.folder)
    assert part == {name: content for name, content in whole.items() if name in part}
    assert sorted(part) == sorted(n for n in whole if not n.startswith(("shard-00002", "shard-00003")))


def test_a_damaged_shard_whose_mending_is_stopped_is_a_missing_one(tmp_path: Path) -> None:
    class Broken(ToyHarvester):
        def harvest(self, tokens: Tensor) -> Tensor:
            raise OSError("device lost")

    store = filled_store(tmp_path)
    flipped(tmp_path, FILES[2], bit=9000)
    with pytest.raises(OSError, match="device lost"):
        store.fill(Broken(), toy_batches())
    assert store.missing_shards == (1,)


def test_what_a_killed_writer_left_is_no_shard_and_goes_away(tmp_path: Path) -> None:
    store = filled_store(tmp_path)
    before = store_files(tmp_path)
    (tmp_path / ".shard-00002.safetensors.4711.0123abcd.tmp").write_bytes(b"half")
    (tmp_path / "shard-00002.json").unlink()
    assert store.missing_shards == (2,)
    assert sum(len(batch) for batch in toy_buffer(store=store)) == 140
    assert store_files(tmp_path) == before


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    one, two = toy_store(tmp_path), toy_store(tmp_path)
    buffer = toy_buffer(store=one)
    next(buffer)
    for second in (lambda: two.fill(ToyHarvester(), toy_batches()), lambda: list(toy_buffer(store=two))):
        with pytest.raises(BlockingIOError, match="another process is writing to this store"):
            second()
    assert sum(len(batch) for batch in buffer) == 132
    two.fill(ToyHarvester(), toy_batches())  # the first writer is done
    assert two.is_complete


def test_too_little_space_is_refused_with_numbers_before_anything_is_harvested(tmp_path: Path) -> None:
    harvester = ToyHarvester()
    harvester.sources = (Source(name="a", d_model=1 << 40), Source(name="b", d_model=1))
    store = toy_store(tmp_path, harvester=harvester)
    needed = 140 * (4 * ((1 << 40) + 1) + 8)
    with pytest.raises(OSError, match=r"needs \d+ bytes, but only \d+ are free; \d+ bytes short") as caught:
        store.fill(harvester, toy_batches())
    assert caught.value.errno == errno.ENOSPC
    assert needed <= int(str(caught.value).split("needs ")[1].split()[0]) <= needed + 4000
    assert harvester.calls == 0


def test_rows_of_another_shape_than_the_sources_say_raise(tmp_path: Path) -> None:
    harvester = ToyHarvester()
    store = toy_store(tmp_path)
    harvester.harvest = lambda tokens: torch.zeros(*tokens.shape, 5)
    with pytest.raises(ValueError, match=r"expected torch.float32 rows of shape \(21, 4\), got .*\(21, 5\)"):
        store.fill(harvester, toy_batches())
    assert store.missing_shards == (0, 1, 2, 3)


_KILLED = """
import os, signal, sys
from tests.data.toy_harvester import ToyHarvester, toy_batches
from tests.data.toy_store import toy_store

def counted(fn, at, seen=[0]):
    def call(*args, **kwargs):
        seen[0] += 1
        if seen[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return fn(*args, **kwargs)
    return call

folder = sys.argv[1]
for at in range(1, 41, 3):
    child = os.fork()
    if child == 0:
        harvester = ToyHarvester()
        harvester.harvest = counted(harvester.harvest, at)
        os.replace, os.fsync = counted(os.replace, at), counted(os.fsync, at)
        toy_store(f"{folder}/{at}").fill(harvester, toy_batches())
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
def test_a_writer_killed_at_any_step_leaves_a_store_that_goes_on(tmp_path: Path) -> None:
    undisturbed = filled_store(tmp_path / "whole")
    whole = store_files(undisturbed.folder)
    command = [sys.executable, "-c", _KILLED, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    ends = [int(line) for line in done.stdout.split()]
    assert -9 in ends
    assert ends[-1] == 0  # so that every step was met
    for at in range(1, 41, 3):
        store = toy_store(tmp_path / f"{at}")
        present = [index for index in range(4) if index not in store.missing_shards]
        assert all(torch.equal(store.read(2 * i), undisturbed.read(2 * i)) for i in present)
        store.fill(ToyHarvester(), toy_batches())
        assert store_files(store.folder) == whole
