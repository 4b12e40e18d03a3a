"""What `run.json` says about where a result comes from."""

import subprocess
from pathlib import Path

import torch

from crosscoders.provenance import data_fingerprint, run_record

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
