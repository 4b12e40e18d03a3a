"""What `run.json` says about where a result comes from."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crosscoders._io import atomic_directory, atomic_write_text
from crosscoders.provenance import data_fingerprint, run_record, weights_fingerprint, write_manifest

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_from_a_checkout_records_its_commit() -> None:
    record = run_record(config={}, seed=0, data={})
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    expected = head.stdout.strip() if head.returncode == 0 else None
    assert (record["commit"] or "").removesuffix("+changes") == (expected or "")


def test_a_fingerprint_sees_shape_and_ids_but_not_the_integer_type() -> None:
    tokens = torch.arange(6).reshape(2, 3)
    assert data_fingerprint(tokens) == data_fingerprint(tokens.to(torch.int32))
    assert len({data_fingerprint(t) for t in (tokens, tokens.reshape(3, 2), tokens + 1)}) == 3


def test_a_fingerprint_of_weights_sees_names_types_shapes_and_bits_but_not_the_order() -> None:
    plain = {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor(2.0), "c": torch.ones(2, 3).bfloat16()}
    others = [
        plain | {"a": torch.tensor([-0.0, 1.0])},
        plain | {"a": torch.tensor([0.0, 1.0]).double()},
        plain | {"b": torch.tensor([2.0])},
        {"x": plain["a"], **{name: plain[name] for name in "bc"}},
    ]
    fingerprint = weights_fingerprint(plain)
    assert len({fingerprint, *map(weights_fingerprint, others)}) == 5
    turned = {name: plain[name] for name in "cba"} | {"c": torch.ones(3, 2).bfloat16().T}
    assert weights_fingerprint(turned) == fingerprint


_WRITES_AND_DIES = """
import os, pathlib, signal, sys
from crosscoders._io import atomic_directory, atomic_write
def die(path):
    path.write_text("half")
    os.kill(os.getpid(), signal.SIGTERM)
folder = pathlib.Path(sys.argv[1])
if sys.argv[2] == "file":
    atomic_write(folder / "table.csv", die)
with atomic_directory(folder / "report") as temporary:
    die(temporary / "index.html")
"""


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_a_killed_write_left_behind_is_not_in_the_manifest(tmp_path: Path, what: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-c", _WRITES_AND_DIES, str(tmp_path), what], env=environment)
    assert len(list(tmp_path.iterdir())) == 1  # so the process did leave something
    atomic_write_text(tmp_path / ".hidden.tmp", "of the user")
    with atomic_directory(tmp_path / "report") as temporary:
        (temporary / "index.html").write_text("whole")
    write_manifest(tmp_path)
    files = json.loads((tmp_path / "manifest.json").read_text())["files"]
    assert set(files) == {".hidden.tmp", "report/index.html"}
