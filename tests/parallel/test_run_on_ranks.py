"""`crosscoders run` under torchrun: what one process trains and writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from crosscoders.cli import main
from tests.survival.small_run import RESULTS, make_pair, write_config

ROOT = Path(__file__).resolve().parents[2]


def under_torchrun(*arguments: str, n: int) -> subprocess.CompletedProcess[str]:
    """The command on n ranks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
    return subprocess.run(
        [*launcher, "-m", "crosscoders.cli", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,  # starting takes most of it where the machine is busy
        check=False,
    )


@pytest.mark.slow
def test_the_command_on_ranks_writes_what_one_process_writes(tmp_path: Path) -> None:
    make_pair(str(tmp_path / "pair"))
    system = "[system]\nlatent_shards = 2\noverlap = 'thread'"
    ranks = write_config(tmp_path / "pair", tmp_path / "ranks", extra=system)
    done = under_torchrun("run", str(ranks), n=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Explained variance") == 1
    assert main(["run", str(write_config(tmp_path / "pair", tmp_path / "one"))]) == 0
    for name in (*RESULTS, "manifest.json"):
        assert (tmp_path / "ranks" / name).is_file(), name
    weights = (load_file(tmp_path / name / "crosscoder/model.safetensors") for name in ("ranks", "one"))
    assert_close(*weights, rtol=0, atol=1e-6)
    scores = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("ranks", "one"))
    assert_close(*(score["reconstruction"]["all"]["explained_variance"] for score in scores))


@pytest.mark.slow
def test_a_mistake_is_told_once_and_by_one_rank(tmp_path: Path) -> None:
    config = write_config(tmp_path, tmp_path / "run", extra="[system]\nlatent_shards = 3")
    failed = under_torchrun("run", str(config), n=2)
    lines = [line for line in failed.stderr.splitlines() if line.startswith("crosscoders: ")]
    assert ["latent_shards=3 does not divide 2 processes" in line for line in lines] == [True]
    assert failed.returncode == 1
