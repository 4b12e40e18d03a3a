"""Reading safetensors checkpoints: exactly what is stored, and a clear refusal of everything else."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from crosscoders.errors import AdapterMismatchError, CheckpointError
from crosscoders.models import load_model
from crosscoders.models.checkpoint_files import CheckpointReader, read_header, read_index
from crosscoders.models.truncated import load_truncated
from tests.models.checkpoints import INDEX, edit_index, qwen2, safetensors_bytes, stored_tensors, write
from tests.models.fuzzing import HOSTILE_NAMES, confined_to, damaged_json

SINGLE = "model.safetensors"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("sharded") / "m", qwen2(num_hidden_layers=4), is_sharded=True)


@pytest.fixture
def folder(tmp_path: Path, sharded: Path) -> Path:
    """A sharded model in a folder of its own, with a valid model beside it that must never be read."""
    copied = tmp_path / "model"
    copied.mkdir()
    for file in sharded.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    save_file(stored_tensors(sharded), tmp_path / "secret.safetensors")
    return copied


def shard_of(folder: Path, name: str) -> Path:
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][name]


EMBEDDING = "model.embed_tokens.weight"


def assert_both_refuse(folder: Path, message: str) -> None:
    """The whole and the truncated load, and the reader itself, end in the same clear error."""
    with pytest.raises(CheckpointError, match=message):
        CheckpointReader(folder).check_all()
    for up_to in (None, "half"):
        with pytest.raises(CheckpointError, match=message):
            load_model(folder, name="m", up_to=up_to)


def test_every_tensor_and_the_count_of_bytes_agree_with_the_safetensors_library(sharded: Path) -> None:
    reader, expected = CheckpointReader(sharded), stored_tensors(sharded)
    assert set(reader.names) == set(expected)
    assert (reader.opened, reader.bytes_read) == ((), 0)
    total = 0
    for name in reader.names:
        assert torch.equal(reader.read(name), expected[name])
        total += expected[name].nbytes
        assert reader.bytes_read == total
    reader.check_all()
    assert set(reader.opened) == {file.name for file in sharded.glob("*.safetensors")}


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool,
     torch.float8_e4m3fn, torch.uint16, torch.complex64],
)  # fmt: skip
def test_every_dtype_and_odd_shape_round_trips(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        str(shape): torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
        for shape in ((), (0,), (3, 0, 2), (5,), (2, 3))
    }
    save_file(tensors, tmp_path / SINGLE, metadata={"format": "pt"})
    reader = CheckpointReader(tmp_path)
    for name, tensor in tensors.items():
        got = reader.read(name)
        assert (got.dtype, got.shape) == (dtype, tensor.shape)
        assert torch.equal(got.flatten().view(torch.uint8), tensor.flatten().view(torch.uint8))
    with pytest.raises(CheckpointError, match="has no tensor 'absent'"):
        reader.read("absent")


def test_a_missing_shard_is_named(folder: Path) -> None:
    shard_of(folder, EMBEDDING).unlink()
    assert_both_refuse(folder, "model-00001-of-.*: the index names this file, but it is missing")


@pytest.mark.parametrize("n_left", [-1, -2000, 4, 8, 40, 0])
def test_a_truncated_shard_is_refused(folder: Path, n_left: int) -> None:
    shard = shard_of(folder, EMBEDDING)
    shard.write_bytes(shard.read_bytes()[:n_left])
    assert_both_refuse(folder, f"{shard.name}: .* bytes")


def test_a_longer_shard_is_refused(folder: Path) -> None:
    shard = shard_of(folder, EMBEDDING)
    shard.write_bytes(shard.read_bytes() + b"\0")
    assert_both_refuse(folder, r"expected \d+ bytes, got \d+")


def test_a_tensor_that_its_shard_lacks_is_named(folder: Path) -> None:
    norm = "model.layers.0.input_layernorm.weight"
    edit_index(folder, lambda shards: shards.update({norm: shards["model.layers.3.mlp.up_proj.weight"]}))
    assert_both_refuse(folder, f"places tensor '{norm}' in this file, which lacks it")


def test_a_tensor_in_two_shards_is_ambiguous(folder: Path) -> None:
    second = sorted(folder.glob("*.safetensors"))[1]
    save_file({**load_file(second), EMBEDDING: torch.zeros(512, 16)}, second)
    with pytest.raises(CheckpointError, match=f"holds .*{EMBEDDING}.*places in another file"):
        load_model(folder, name="m")


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, "pytorch_model.bin"])
def test_names_that_are_no_file_of_the_folder_are_refused(folder: Path, name: str) -> None:
    (folder / "link.safetensors").symlink_to(folder.parent / "secret.safetensors")
    (folder / "folder.safetensors").mkdir()
    edit_index(folder, lambda shards: shards.update({EMBEDDING: name}))
    for up_to in (None, "half"):
        with confined_to(folder, allowed=()), pytest.raises(CheckpointError):
            load_model(folder, name="m", up_to=up_to)


@pytest.mark.parametrize("name", [SINGLE, INDEX, "config.json"])
def test_links_out_of_the_folder_are_refused(folder: Path, name: str) -> None:
    elsewhere = folder.parent / f"elsewhere-{name}"
    source = folder.parent / "secret.safetensors" if name == SINGLE else folder / name
    elsewhere.write_bytes(source.read_bytes())
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(elsewhere)
    for up_to in (None, "half"):
        with pytest.raises(CheckpointError, match="this link leads out of its folder"):
            load_model(folder, name="m", up_to=up_to)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not readable as JSON"),
        (b"{", "not readable as JSON"),
        (b"\xff\xfe{}", "not readable as JSON"),
        (b"[" * 200_000, "not readable as JSON"),
        (b"[]", "expected a 'weight_map'"),
        (b"{}", "expected a 'weight_map'"),
        (b'{"weight_map": {}}', "expected a 'weight_map'"),
        (b'{"weight_map": ["a.safetensors"]}', "expected a 'weight_map'"),
        (b'{"weight_map": {"a": 3}}', "tensor 'a' should name a file, got 3"),
        (b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "the key 'a' appears twice"),
        (b'{"weight_map": {"a": "x.safetensors"}, "weight_map": {}}', "the key 'weight_map' appears twice"),
        (b'{"weight_map": {"a": "x.safetensors"}}', "expected a table of 'metadata'"),
        (b'{"weight_map": {"a": "x.bin"}}', "only safetensors files are read. Convert"),
    ],
)
def test_an_index_of_another_form_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / INDEX).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_index(tmp_path / INDEX)


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry(dtype="F4")}, "unknown dtype 'F4'"),
        ({"a": entry(dtype=["F32"])}, "unknown dtype"),
        ({"a": entry(shape=[3])}, r"takes 12 bytes, but its offsets \[0, 8\] span 8"),
        ({"a": entry(shape=[-2])}, "are not lists of sizes"),
        ({"a": entry(shape=[True])}, "are not lists of sizes"),
        ({"a": entry(shape=2)}, "are not lists of sizes"),
        ({"a": entry(shape=[2**63, 0])}, "are not lists of sizes"),
        ({"a": entry(shape=[1] * 65)}, "are not lists of sizes"),
        ({"a": entry(shape=[2**40, 2**40], offsets=[0, 2**62])}, "span"),
        ({"a": entry(offsets=[8, 0])}, "span -8"),
        ({"a": entry(offsets=[0, 8, 9])}, "are not lists of sizes"),
        ({"a": entry(offsets=[4, 12])}, "overlap or leave gaps at byte"),
        ({"a": entry(), "b": entry()}, "overlap or leave gaps at byte"),
        ({"a": entry(shape=[1], offsets=[0, 4])}, "expected .* bytes, got"),
        ({}, "expected .* bytes, got"),
        ({"a": [1]}, "expected dtype, shape and data_offsets"),
        ({"a": {**entry(), "more": 1}}, "expected dtype, shape and data_offsets"),
        ({"__metadata__": {"format": 1}, "a": entry()}, "__metadata__ is not a table of texts"),
        ([1], "the header is not a table"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path, header: Any, message: str) -> None:
    (tmp_path / SINGLE).write_bytes(safetensors_bytes(json.dumps(header).encode(), bytes(8)))
    with pytest.raises(CheckpointError, match=message):
        read_header(tmp_path / SINGLE)


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 10**9, 100, 1])
def test_a_header_length_that_does_not_fit_is_refused(tmp_path: Path, length: int) -> None:
    (tmp_path / SINGLE).write_bytes(safetensors_bytes(b"{}", length=length))
    with pytest.raises(CheckpointError, match=r"does not fit a file of|not readable as JSON"):
        read_header(tmp_path / SINGLE)


def test_a_doubled_tensor_name_is_refused(tmp_path: Path) -> None:
    one = json.dumps(entry()).encode()
    (tmp_path / SINGLE).write_bytes(safetensors_bytes(b'{"a": ' + one + b', "a": ' + one + b"}", bytes(8)))
    with pytest.raises(CheckpointError, match="the key 'a' appears twice"):
        read_header(tmp_path / SINGLE)


class Trap:
    """Unpickling one of these leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_pickle_under_a_safetensors_name_is_not_executed(folder: Path, writer: str) -> None:
    sprung, shard = folder.parent / "sprung", shard_of(folder, EMBEDDING)
    with shard.open("wb") as file:
        pickle.dump(Trap(sprung), file) if writer == "pickle" else torch.save(Trap(sprung), file)
    assert_both_refuse(folder, "this is a pickle .* Nothing in it was executed")
    assert not sprung.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "pytorch_model-00001-of-00002.bin"])
def test_a_folder_of_pickle_files_alone_is_refused(folder: Path, name: str) -> None:
    sprung = folder.parent / "sprung"
    for file in (*folder.glob("*.safetensors"), folder / INDEX):
        file.unlink()
    torch.save(Trap(sprung), folder / name)
    assert_both_refuse(folder, "holds only pickle files .* Convert the model to safetensors first")
    assert not sprung.exists()


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    for file in (*folder.glob("*.safetensors"), folder / INDEX):
        file.unlink()
    assert_both_refuse(folder, "neither model.safetensors nor model.safetensors.index.json is there")


def test_a_pipe_in_the_place_of_a_shard_does_not_hang(folder: Path) -> None:
    shard = shard_of(folder, EMBEDDING)
    shard.unlink()
    os.mkfifo(shard)
    assert_both_refuse(folder, "the index names this file, but it is missing")


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sharded model; a link, a directory and a valid model beside it lie in wait."""
    home = tmp_path_factory.mktemp("fuzzed")
    folder = write(home / "model", qwen2(num_hidden_layers=2, vocab_size=600), is_sharded=True)
    save_file(stored_tensors(folder), home / "secret.safetensors")
    (folder / "link.safetensors").symlink_to(home / "secret.safetensors")
    (folder / "folder.safetensors").mkdir()
    return folder


DOCUMENTED = (CheckpointError, AdapterMismatchError)
N_CASES = [pytest.param(70), pytest.param(2000, marks=pytest.mark.slow)]


def assert_documented(n_cases: int, damaged: st.SearchStrategy[bytes], target: Path, folder: Path) -> None:
    sound, before = target.read_bytes(), sorted(folder.parent.rglob("*"))
    load_truncated(folder, up_to="half")  # sound as it is; also loads every module that loads late

    @settings(
        max_examples=n_cases, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(damaged)
    def case(content: bytes) -> None:
        target.write_bytes(content)
        with confined_to(folder, allowed=DOCUMENTED):
            load_truncated(folder, up_to="half")

    try:
        case()
    finally:
        target.write_bytes(sound)
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.parametrize("n_cases", N_CASES)
def test_a_damaged_index_ends_in_a_documented_error(fuzzed: Path, n_cases: int) -> None:
    assert_documented(n_cases, damaged_json(json.loads((fuzzed / INDEX).read_text())), fuzzed / INDEX, fuzzed)


@pytest.mark.parametrize("n_cases", N_CASES)
def test_a_damaged_config_ends_in_a_documented_error(fuzzed: Path, n_cases: int) -> None:
    target = fuzzed / "config.json"
    assert_documented(n_cases, damaged_json(json.loads(target.read_text())), target, fuzzed)


@pytest.mark.parametrize("n_cases", N_CASES)
def test_a_damaged_header_ends_in_a_documented_error(fuzzed: Path, n_cases: int) -> None:
    target = shard_of(fuzzed, "model.layers.0.mlp.up_proj.weight")
    raw = target.read_bytes()
    n_header = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + n_header]), raw[8 + n_header :]
    lengths = st.none() | st.integers(0, 2**64 - 1) | st.integers(0, 2 * n_header)
    kept = st.sampled_from([len(data), len(data), len(data) - 1, 0])
    damaged = st.builds(
        lambda text, length, n: safetensors_bytes(text, data[:n], length=length),
        damaged_json(header), st.none() | lengths, kept,
    )  # fmt: skip
    assert_documented(n_cases, damaged, target, fuzzed)
