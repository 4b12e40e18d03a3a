"""What is not exactly an artifact raises CheckpointError, before anything of a claimed size is made."""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from crosscoders._io import file_entry, write_manifest
from crosscoders.activation_fns import JumpReLU
from crosscoders.artifact import check_weights, read_artifact, read_header, read_tensors
from crosscoders.crosscoder import Crosscoder
from crosscoders.errors import CheckpointError
from tests.hub.toys import header_of, rewrite, saved

WEIGHTS = "model.safetensors"


def assert_refused(folder: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        Crosscoder.from_pretrained(folder)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < 2000


def change(folder: Path, path: str, value: object) -> None:
    """Set one entry of config.json, by its dotted path, and sign the file again."""
    content = json.loads((folder / "config.json").read_text(encoding="ascii"))
    del content["config_sha256"]
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    place = content
    for part in parents:
        place = place[part]
    place[last] = value
    write_manifest(folder / "config.json", content)


WRONG: list[tuple[str, object, str]] = [
    ("files", [], '"files" should be an object'),
    ("files", "model.safetensors", '"files" should be an object'),
    ("files", {}, "should list model.safetensors"),
    (f"files/{WEIGHTS}", {}, "64 hex digits"),
    (f"files/{WEIGHTS}", None, "64 hex digits"),
    (f"files/{WEIGHTS}", {"sha256": "0" * 64}, "64 hex digits"),
    (f"files/{WEIGHTS}", {"sha256": "Z" * 64, "bytes": 3}, "64 hex digits"),
    (f"files/{WEIGHTS}", {"sha256": "A" * 64, "bytes": 3}, "64 hex digits"),
    (f"files/{WEIGHTS}", {"sha256": "0" * 64, "bytes": -1}, "64 hex digits"),
    (f"files/{WEIGHTS}", {"sha256": "0" * 64, "bytes": 10**30}, "64 hex digits"),
    (f"files/{WEIGHTS}", {"sha256": "0" * 64, "bytes": True}, "64 hex digits"),
    (f"files/{WEIGHTS}", {"sha256": "0" * 64, "bytes": 3.0}, "64 hex digits"),
    (f"files/{WEIGHTS}", {"sha256": "0" * 64, "bytes": 3, "more": 1}, "64 hex digits"),
    (f"files/{WEIGHTS}", {"sha256": "0" * 64, "bytes": 3}, "expected 3 bytes"),
    ("files/config.json", {"sha256": "0" * 64, "bytes": 3}, "and not config.json"),
    ("files/..", {"sha256": "0" * 64, "bytes": 3}, "not the name of a file inside"),
    ("files/gone.txt", {"sha256": "0" * 64, "bytes": 3}, "missing"),
    ("training_summary", [], '"training_summary" should be an object'),
    ("crosscoder", None, '"crosscoder" should be an object'),
    ("crosscoder", [], '"crosscoder" should be an object'),
    ("crosscoder/more", 1, "unknown keys"),
    ("crosscoder/n_latents", 10**12, r"should have shape \(1000000000000, 10\)"),
    ("crosscoder/n_latents", 10**40, "should have shape"),
    ("crosscoder/n_latents", 31, r"should have shape \(31, 10\), got \(32, 10\)"),
    ("crosscoder/n_latents", 0, "at least 1"),
    ("crosscoder/n_latents", "32", "n_latents should be int, got '32'"),
    ("crosscoder/n_latents", 32.0, "n_latents should be int"),
    ("crosscoder/n_latents", True, "n_latents should be int"),
    ("crosscoder/n_latents", None, "n_latents should be int"),
    ("crosscoder/is_folded", 1, "is_folded should be bool"),
    ("crosscoder/decoder_init_norm", "x", "decoder_init_norm should be float"),
    ("crosscoder/decoder_init_norm", 10**400, "decoder_init_norm should be float"),
    ("crosscoder/sources", {}, "sources"),
    ("crosscoder/sources", 3, "no crosscoder to build"),
    ("crosscoder/sources", "abc", "no crosscoder to build"),
    ("crosscoder/sources", [], "at least one"),
    ("crosscoder/sources", [[]], "no crosscoder to build"),
    ("crosscoder/sources/1/name", "base", "unique"),
    ("crosscoder/sources/0/name", None, "name should be str"),
    ("crosscoder/sources/0/d_model", True, "d_model should be int"),
    ("crosscoder/sources/0/d_model", 10**15, "should have shape"),
    ("crosscoder/sources/0/d_model", -1, "at least 1"),
    ("crosscoder/sources/0/scale", "1", "scale should be float"),
    ("crosscoder/sources/0/scale", 0.0, "finite and positive"),
    ("crosscoder/sources/0/scale", 10**400, "scale should be float"),
    ("crosscoder/sources/0/revision", 3, "revision should be"),
    ("crosscoder/sources/0/tokenizer_fingerprint", ["x"], "tokenizer_fingerprint should be"),
    ("crosscoder/activation_fn", None, "no crosscoder to build"),
    ("crosscoder/activation_fn", [], "no crosscoder to build"),
    ("crosscoder/activation_fn/kind", ["topk"], "unknown kind"),
    ("crosscoder/activation_fn/kind", "relu", "unknown keys"),
    ("crosscoder/activation_fn/k", True, "k should be int"),
    ("crosscoder/activation_fn/k", 33, "has only 32"),
    ("crosscoder/activation_fn/k", 10**30, "has only 32"),
    ("crosscoder/activation_fn/threshold_momentum", None, "threshold_momentum should be float"),
    ("threshold", 0.5, "says threshold 0.5, but model.safetensors holds 0.01"),
    ("threshold", None, "says threshold None"),
    ("threshold", "0.015", "says threshold '0.015'"),
    ("format", 1, "another kind of file"),
    ("format_version", True, "format_version 1"),
    ("format_version", 1.0, "format_version 1"),
    ("format_version", [[[1]]], "format_version 1"),
    ("library_version", 3, "format_version 1"),
]


@pytest.mark.parametrize(("path", "value", "match"), WRONG, ids=[f"{p}={v!r:.20}" for p, v, _ in WRONG])
def test_wrong_values_and_types_are_named(tmp_path: Path, path: str, value: object, match: str) -> None:
    saved(tmp_path / "a")
    change(tmp_path / "a", path, value)
    assert_refused(tmp_path / "a", match)


@pytest.mark.parametrize("key", ["crosscoder", "training_summary", "files", "library_version"])
def test_missing_keys_are_named(tmp_path: Path, key: str) -> None:
    saved(tmp_path / "a")
    content = header_of(tmp_path / "a")
    raw = json.dumps({k: v for k, v in content.items() if k != key})
    (tmp_path / "a" / "config.json").write_text(raw)
    assert_refused(tmp_path / "a", "missing keys|format_version")


def raw_cases() -> dict[str, Callable[[bytes], bytes]]:
    """Bytes of config.json that JSON's grammar or Python's parser trips over."""
    deep = b'"training_summary": ' + b'{"a": ' * 100_000 + b"1" + b"}" * 100_000
    return {
        "empty": lambda raw: b"",
        "not UTF-8": lambda raw: raw.replace(b"base", b"\xff\xfe\xfa"),
        "UTF-16": lambda raw: raw.decode().encode("utf-16"),
        "byte order mark": lambda raw: b"\xef\xbb\xbf" + raw,
        "duplicate key": lambda raw: raw.replace(b'"n_latents": 32', b'"n_latents": 31, "n_latents": 32'),
        "NaN": lambda raw: raw.replace(b'"scale": 0.2', b'"scale": NaN'),
        "infinite": lambda raw: raw.replace(b'"scale": 0.2', b'"scale": 1e999'),
        "deep": lambda raw: raw.replace(b'"training_summary": {\n    "steps": 3\n  }', deep),
        "deep list": lambda raw: b"[" * 100_000,
        "moderately deep": lambda raw: b'{"format": ' + b"[" * 900 + b"]" * 900 + b"}",
        "long number": lambda raw: raw.replace(b'"n_latents": 32', b'"n_latents": ' + b"9" * 5000),
        "cut": lambda raw: raw[: len(raw) // 2],
        "more": lambda raw: raw + b"{}",
        "null": lambda raw: b"null",
        "number": lambda raw: b"1",
    }


@pytest.mark.parametrize("case", raw_cases())
def test_bytes_that_are_not_our_json_are_refused(tmp_path: Path, case: str) -> None:
    saved(tmp_path / "a")
    config = tmp_path / "a" / "config.json"
    changed = raw_cases()[case](config.read_bytes())
    assert changed != config.read_bytes()
    config.write_bytes(changed)
    assert_refused(tmp_path / "a", "config.json")


@pytest.mark.parametrize("depth", range(850, 1000, 10))
def test_nesting_that_can_be_read_but_not_written_again_is_refused(tmp_path: Path, depth: int) -> None:
    saved(tmp_path / "a")
    config = tmp_path / "a" / "config.json"
    nested = b'"steps": ' + b"[" * depth + b"]" * depth
    config.write_bytes(config.read_bytes().replace(b'"steps": 3', nested))
    assert_refused(tmp_path / "a", "config.json")


def test_a_config_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    with (tmp_path / "a" / "config.json").open("ab") as file:
        file.truncate(1 << 40)  # sparse: reading it would fill the memory
    assert_refused(tmp_path / "a", "expected at most 16777216 bytes")


def reweighted(folder: Path, content: bytes) -> None:
    """Put other weights and list them correctly."""
    (folder / WEIGHTS).write_bytes(content)
    rewrite(folder, files={WEIGHTS: file_entry(folder / WEIGHTS)})


def weight_cases() -> dict[str, tuple[Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], str]]:
    """Weights that are well-formed and listed, but not this crosscoder's."""
    return {
        "missing": (lambda t: {k: v for k, v in t.items() if k != "b_dec"}, "'b_dec'.*no such tensor"),
        "extra": (lambda t: {**t, "W_skip": torch.zeros(2)}, r"unknown tensors \['W_skip'\]"),
        "transposed": (lambda t: {**t, "W_enc": t["W_enc"].T.contiguous()}, r"got \(10, 32\)"),
        "integer": (lambda t: {**t, "b_enc": t["b_enc"].int()}, "should share one of"),
        "all integer": (lambda t: {k: v.int() for k, v in t.items()}, "should share one of"),
        "mixed": (lambda t: {**t, "b_enc": t["b_enc"].double()}, "should share one of"),
        "bool": (lambda t: {**t, "b_enc": t["b_enc"] > 0}, "should share one of"),
        "no threshold": (
            lambda t: {k: v for k, v in t.items() if "threshold" not in k},
            "threshold",
        ),
        "other threshold": (lambda t: {**t, "activation.threshold": torch.tensor(0.5)}, "says threshold"),
        "threshold of another shape": (
            lambda t: {**t, "activation.threshold": torch.zeros(32)},
            "threshold",
        ),
    }


@pytest.mark.parametrize("case", weight_cases())
def test_weights_that_contradict_the_config_are_refused(tmp_path: Path, case: str) -> None:
    saved(tmp_path / "a")
    make, match = weight_cases()[case]
    reweighted(tmp_path / "a", save(make(load_file(tmp_path / "a" / WEIGHTS))))
    assert_refused(tmp_path / "a", match)


class _Payload:
    """Leaves a trace if it is ever unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("protocol", [0, 2, 5, "torch"])
def test_a_pickle_in_disguise_is_refused_and_never_executed(tmp_path: Path, protocol: int | str) -> None:
    saved(tmp_path / "a")
    payload, disguised = _Payload(tmp_path / "executed"), tmp_path / "payload"
    if protocol == "torch":
        torch.save({"W_enc": payload}, disguised)
    else:
        disguised.write_bytes(pickle.dumps(payload, protocol=int(protocol)))
    reweighted(tmp_path / "a", disguised.read_bytes())
    assert_refused(tmp_path / "a", "not readable as safetensors")
    assert not (tmp_path / "executed").exists()


def headers() -> dict[str, bytes]:
    """Weight files whose own header lies."""
    one = {"W_enc": {"dtype": "F32", "shape": [32, 10], "data_offsets": [0, 1280]}}

    def file(header: object, body: bytes = b"\0" * 1280) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + body

    huge = {"W_enc": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 2**62]}}
    return {
        "empty": b"",
        "header longer than the file": struct.pack("<Q", 2**40) + b"{}",
        "header length of 2**64": b"\xff" * 8 + b"{}",
        "no JSON": file(b"x" * 40),
        "deep JSON": file(b"[" * 100_000),
        "no object": file([1, 2]),
        "offsets beyond the file": file({"W_enc": {**one["W_enc"], "data_offsets": [0, 2560]}}),
        "offsets backwards": file({"W_enc": {**one["W_enc"], "data_offsets": [1280, 0]}}),
        "shape of another size": file({"W_enc": {**one["W_enc"], "shape": [32, 11]}}),
        "negative shape": file({"W_enc": {**one["W_enc"], "shape": [-32, -10]}}),
        "huge": file(huge),
        "unknown dtype": file({"W_enc": {**one["W_enc"], "dtype": "PICKLE"}}),
        "bytes unaccounted for": file(one, b"\0" * 2000),
    }


@pytest.mark.parametrize("case", headers())
def test_a_lying_safetensors_header_is_refused(tmp_path: Path, case: str) -> None:
    saved(tmp_path / "a")
    reweighted(tmp_path / "a", headers()[case])
    assert_refused(tmp_path / "a", "not readable as safetensors")


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_links_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    saved(tmp_path / "a")
    (tmp_path / "a" / name).rename(tmp_path / "elsewhere")
    os.symlink("../elsewhere", tmp_path / "a" / name)
    assert_refused(tmp_path / "a", "leads out of its folder")


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path, name: str) -> None:
    saved(tmp_path / "a")
    (tmp_path / "a" / name).unlink()
    (tmp_path / "a" / name).mkdir()
    assert_refused(tmp_path / "a", "no such file|no file")


def test_files_that_are_not_listed_are_never_read(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    (tmp_path / "a" / "pytorch_model.bin").write_bytes(pickle.dumps(_Payload(tmp_path / "executed")))
    Crosscoder.from_pretrained(tmp_path / "a")
    assert not (tmp_path / "executed").exists()


def test_thresholds_per_latent_stay_in_the_weights(tmp_path: Path) -> None:
    saved(tmp_path / "a", activation_fn=JumpReLU())
    assert "threshold" not in header_of(tmp_path / "a")
    Crosscoder.from_pretrained(tmp_path / "a")


def test_an_artifact_without_the_newer_keys_is_read(tmp_path: Path) -> None:
    crosscoder = saved(tmp_path / "a")
    content = header_of(tmp_path / "a")
    for source in content["crosscoder"]["sources"]:
        del source["tokenizer_fingerprint"]
    del content["threshold"], content["config_sha256"]
    write_manifest(tmp_path / "a" / "config.json", content)
    again = Crosscoder.from_pretrained(tmp_path / "a")
    assert [source.tokenizer_fingerprint for source in again.sources] == [None, None]
    assert torch.equal(again.W_enc, crosscoder.W_enc)


def test_every_flipped_byte_of_the_weights_raises(tmp_path: Path) -> None:
    saved(tmp_path / "a", n_latents=4)
    weights = tmp_path / "a" / WEIGHTS
    whole = weights.read_bytes()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << (position % 8)
        weights.write_bytes(changed)
        with pytest.raises(CheckpointError, match="SHA-256"):
            read_artifact(tmp_path / "a")
    weights.write_bytes(whole)
    assert "W_enc" in read_artifact(tmp_path / "a")[1]


def test_a_shape_is_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    """A config and a tiny file that agree in bytes, but claim a petabyte."""
    saved(tmp_path / "a")
    change(tmp_path / "a", "crosscoder/n_latents", 2**50)
    assert read_header(tmp_path / "a")["crosscoder"]["n_latents"] == 2**50
    assert_refused(tmp_path / "a", "should have shape")
    save_file({"W_enc": torch.zeros(1)}, tmp_path / "one")
    reweighted(tmp_path / "a", (tmp_path / "one").read_bytes())
    assert_refused(tmp_path / "a", "should have shape")


@pytest.mark.parametrize("how", [shutil.copy, os.replace], ids=["written", "replaced"])
def test_weights_that_change_between_check_and_reading_are_refused(
    how: Callable[[Path, Path], object], tmp_path: Path
) -> None:
    """Of the same shape and with a header of their own, so that nothing else tells them apart."""
    for seed, name in enumerate(("a", "b")):
        saved(tmp_path / name, seed=seed)
    header = header_of(tmp_path / "a")
    stamp = check_weights(tmp_path / "a", header, n_latents=32, width=10)
    assert read_tensors(tmp_path / "a", header, stamp=stamp).keys() >= {"W_enc"}
    how(tmp_path / "b" / "model.safetensors", tmp_path / "a" / "model.safetensors")
    with pytest.raises(CheckpointError, match="while it was read"):
        read_tensors(tmp_path / "a", header, stamp=stamp)
