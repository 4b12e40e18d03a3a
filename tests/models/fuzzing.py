"""Damaged metadata for property tests, and a watch on what a call opens while it reads it."""

import copy
import functools
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

HOSTILE_NAMES = [
    "../secret.safetensors", "../../etc/passwd", "/etc/passwd", "link.safetensors", "..", ".", "", "a\0b",
    "\ud800.safetensors", "a" * 300 + ".safetensors", "C:\\x.safetensors", "model.safetensors",
    "gone.safetensors", "folder.safetensors",
]  # fmt: skip
_SCALARS = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**400, 1.5, -0.0, float("nan"), float("inf"), 1e308,
    "", "F32", "BF16", "F4", *HOSTILE_NAMES,
]  # fmt: skip
_CONTAINERS = [[], {}, [0], [0, 0], [-1, 4], [4, 0], [2**62, 4], [0] * 100, {"dtype": "F32"}, [[[]]]]


def hostile_values() -> st.SearchStrategy[Any]:
    fixed = st.sampled_from([*_SCALARS, *_CONTAINERS]).map(copy.deepcopy)
    return fixed | st.integers() | st.text(max_size=8)


@st.composite
def damaged_json(draw: st.DrawFn, content: Any) -> bytes:
    """A JSON text in which some values, keys or bytes are not what they were."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        _damage_value(draw, content)
    raw = json.dumps(content).encode()
    kind = draw(st.sampled_from(["plain", "plain", "plain", "cut", "bytes", "doubled", "deep", "replaced"]))
    if kind == "cut":
        return raw[: draw(st.integers(0, len(raw)))]
    if kind == "bytes":
        at = draw(st.integers(0, len(raw)))
        return raw[:at] + draw(st.binary(max_size=6)) + raw[at + draw(st.integers(0, 6)) :]
    if kind == "doubled":
        return raw[:-1] + b", " + raw[1:] if len(raw) > 2 else raw
    if kind == "deep":
        n = draw(st.sampled_from([100, 5_000, 200_000]))
        return b'{"a": ' + b"[" * n + b"]" * draw(st.sampled_from([0, n])) + b"}"
    return draw(st.binary(max_size=60)) if kind == "replaced" else raw


def _damage_value(draw: st.DrawFn, content: Any) -> None:
    table = content
    while True:  # walk down to a random table or list
        inner = [value for value in _values(table) if isinstance(value, dict | list) and value]
        if not inner or draw(st.booleans()):
            break
        table = inner[draw(st.integers(0, len(inner) - 1))]
    keys = list(table) if isinstance(table, dict) else list(range(len(table)))
    if not keys:
        return
    key, action = (
        keys[draw(st.integers(0, len(keys) - 1))],
        draw(st.sampled_from("set set drop add swap".split())),
    )
    if action == "set":
        table[key] = draw(hostile_values())
    elif action == "drop":
        del table[key]
    elif action == "swap":
        other = keys[draw(st.integers(0, len(keys) - 1))]
        table[key], table[other] = table[other], table[key]
    elif isinstance(table, dict):
        table[draw(st.sampled_from(HOSTILE_NAMES) | st.text(max_size=8))] = draw(hostile_values())


def _values(table: Any) -> list[Any]:
    return list(table.values()) if isinstance(table, dict) else list(table)


_WATCHED = {"open", "os.remove", "os.rename", "os.mkdir", "os.symlink", "subprocess.Popen"}
_opened: list[str] = []
_watching: list[bool] = []


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _watching and event in _WATCHED:
        _opened.append(f"{event} {os.fsdecode(args[0]) if isinstance(args[0], str | bytes) else args[0]}")


@functools.cache
def _install_watch() -> None:
    sys.addaudithook(_audit)  # cannot be removed again; outside of `confined_to` it does nothing


@contextmanager
def confined_to(folder: Path, *, allowed: type[Exception] | tuple[type[Exception], ...]) -> Iterator[None]:
    """Fail unless the block ends soon, with a documented error or none, and opens nothing beside the folder.

    Files of the Python installation (modules that load late) do not count.
    """
    _install_watch()
    _opened.clear()
    _watching.append(True)
    start = time.monotonic()
    try:
        yield
    except allowed:
        pass
    finally:
        _watching.clear()
    assert time.monotonic() - start < 20
    outside = [entry for entry in _opened if _is_outside(entry, folder)]
    assert outside == []


def _is_outside(entry: str, folder: Path) -> bool:
    event, _, name = entry.partition(" ")
    if event == "open":
        path = Path(os.path.abspath(name))
        homes = (folder, Path(sys.prefix), Path(sys.base_prefix), Path("/proc"), Path("/sys"), Path("/dev"))
        return not name.isdigit() and not any(path.is_relative_to(home) for home in homes)
    return True
