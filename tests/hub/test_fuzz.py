"""Thousands of broken artifacts: only the documented exceptions, no hang, no file outside the folder.

The default tier runs a tenth of what the slow tier does (2,000 cases each).
"""

import contextlib
import copy
import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from crosscoders._io import file_entry, write_manifest
from crosscoders.crosscoder import Crosscoder
from crosscoders.errors import CheckpointError
from crosscoders.hub import from_pretrained, pull
from tests.hub.stand_in import StandIn
from tests.hub.toys import files_of, header_of, rows, saved

WEIGHTS = "model.safetensors"
SECONDS = 5.0  # a case takes milliseconds

INTERESTING = [
    0,
    -1,
    1,
    10**12,
    2**63,
    10**400,
    True,
    None,
    0.0,
    -0.5,
    1e308,
    "",
    "..",
    "../x",
    "/etc/passwd",
]
INTERESTING += [
    "model.safetensors",
    "topk",
    "batch_topk",
    "relu",
    "0" * 64,
    [],
    {},
    [[]],
    "\ud800",
    "\0",
    "a" * 300,
]
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
VALUES = st.sampled_from(INTERESTING) | JSON
KEYS = (
    st.sampled_from(["n_latents", "scale", "k", "kind", "files", "threshold", "../x", "a/b", ""]) | st.text()
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every entry of a JSON value."""
    if not isinstance(value, dict | list):
        return []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [place for key, item in items for place in [(*path, key), *places(item, (*path, key))]]


def mutated(content: Any, data: st.DataObject, *, n: int) -> Any:
    """Replace, remove or add `n` entries anywhere."""
    content = copy.deepcopy(content)
    for _ in range(n):
        where = places(content)
        if not where:
            return content
        *parents, last = data.draw(st.sampled_from(where))
        inside = content
        for key in parents:
            inside = inside[key]
        action = data.draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if action == "replace":
            inside[last] = data.draw(VALUES)
        elif action == "remove":
            del inside[last]
        elif isinstance(inside, dict):
            inside[data.draw(KEYS)] = data.draw(VALUES)
        else:
            inside.insert(last, data.draw(VALUES))
    return content


def garbled(raw: bytes, data: st.DataObject) -> bytes:
    """Cut, overwrite or insert bytes."""
    at = data.draw(st.integers(0, len(raw)))
    middle = data.draw(st.binary(max_size=20))
    return raw[:at] + middle + raw[at + data.draw(st.integers(0, 30)) :]


def outside(folder: Path) -> set[str]:
    """Everything beside the folder, so that a file that escaped shows."""
    above = folder.parent
    return {p.relative_to(above).as_posix() for p in above.rglob("*") if not p.is_relative_to(folder)}


def read_is_clean(folder: Path) -> bool:
    """Read in both ways; True if it was accepted. Anything but the documented errors propagates."""
    before, start = outside(folder), time.monotonic()
    try:
        crosscoder = Crosscoder.from_pretrained(folder)
        crosscoder.eval().decode(crosscoder.pre_activations(rows()).relu())
        accepted = True
    except CheckpointError:
        accepted = False
    try:
        from_pretrained(folder)
    except (CheckpointError, ValueError, FileNotFoundError):
        assert not accepted
    assert outside(folder) == before
    assert time.monotonic() - start < SECONDS
    return accepted


def assert_documented(n_cases: int, case: Callable[[st.DataObject], None]) -> None:
    """Run `case` on that many draws, the same ones every time."""
    options = settings(
        max_examples=n_cases,
        derandomize=True,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    options(given(st.data())(case))()


def config_case(folder: Path) -> Callable[[st.DataObject], None]:
    """One broken config.json: mutated and signed again, mutated and not signed, or garbled bytes."""
    whole = header_of(folder)
    raw = (folder / "config.json").read_bytes()
    unsigned = {key: value for key, value in whole.items() if key != "config_sha256"}

    def case(data: st.DataObject) -> None:
        config = folder / "config.json"
        kind = data.draw(st.sampled_from(["signed", "signed", "unsigned", "bytes"]))
        if kind == "bytes":
            config.write_bytes(garbled(raw, data))
        elif kind == "unsigned":
            config.write_text(json.dumps(mutated(whole, data, n=1)))
        else:
            write_manifest(config, mutated(unsigned, data, n=data.draw(st.integers(1, 3))))
        read_is_clean(folder)

    return case


def weights_case(folder: Path) -> Callable[[st.DataObject], None]:
    """One broken model.safetensors, correctly listed: its header mutated or its bytes garbled."""
    whole = header_of(folder)
    del whole["config_sha256"]
    raw = (folder / WEIGHTS).read_bytes()
    (n_header,) = struct.unpack("<Q", raw[:8])
    header, body = json.loads(raw[8 : 8 + n_header]), raw[8 + n_header :]

    def case(data: st.DataObject) -> None:
        if data.draw(st.booleans()):
            text = json.dumps(mutated(header, data, n=data.draw(st.integers(1, 2)))).encode()
            length = data.draw(st.sampled_from([len(text), len(text), len(text), 2**63, 0, len(text) - 1]))
            content = struct.pack("<Q", length) + text + body
        else:
            content = garbled(raw, data)
        (folder / WEIGHTS).write_bytes(content)
        write_manifest(folder / "config.json", {**whole, "files": {WEIGHTS: file_entry(folder / WEIGHTS)}})
        read_is_clean(folder)

    return case


CASES = {"config": config_case, "weights": weights_case}


@pytest.mark.parametrize("what", CASES)
def test_broken_artifacts_raise_only_what_is_documented(tmp_path: Path, what: str) -> None:
    saved(tmp_path / "in" / "a")
    assert read_is_clean(tmp_path / "in" / "a")
    assert_documented(200, CASES[what](tmp_path / "in" / "a"))


@pytest.mark.slow
@pytest.mark.parametrize("what", CASES)
def test_two_thousand_broken_artifacts_raise_only_what_is_documented(tmp_path: Path, what: str) -> None:
    saved(tmp_path / "in" / "a")
    assert_documented(2000, CASES[what](tmp_path / "in" / "a"))


@pytest.mark.slow
def test_broken_configs_pulled_from_a_hub_write_nothing_outside_the_cache(
    hub: StandIn, tmp_path: Path
) -> None:
    saved(tmp_path / "a")
    files = files_of(tmp_path / "a")
    whole = header_of(tmp_path / "a")
    del whole["config_sha256"]

    def case(data: st.DataObject) -> None:
        write_manifest(tmp_path / "a" / "config.json", mutated(whole, data, n=data.draw(st.integers(1, 3))))
        config = (tmp_path / "a" / "config.json").read_bytes()
        listed = json.loads(config).get("files")
        extra = dict.fromkeys(listed if isinstance(listed, dict) else [], b"extra")
        hub.add("someone/cross", {**extra, **files, "config.json": config})
        before = outside(tmp_path / "cache")
        with contextlib.suppress(CheckpointError, FileNotFoundError):
            pull("someone/cross")
        assert outside(tmp_path / "cache") == before

    assert_documented(300, case)
