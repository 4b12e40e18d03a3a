"""SIGTERM in every phase of `crosscoders run`: exit 75 within 10 s, and --resume ends as undisturbed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.survival.nursery import ROOT, Nursery, nursery
from tests.survival.small_run import RESULTS, write_config

JOB = "tests.survival.small_run"
SECONDS = 10
PARTS = (
    "loading", "tokenizing", "harvest", "training", "checkpoint", "saving", "measuring", "splicing", "writing"
)  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pair")


@pytest.fixture(scope="module")
def warm(pair: Path) -> Iterator[Nursery]:
    """A process in which the command has run once, undisturbed, into `pair/undisturbed`."""
    with nursery() as process:
        process.here(f"{JOB}:make_pair", folder=str(pair))
        config = write_config(pair, pair / "undisturbed")
        process.here(f"{JOB}:command", config=str(config), stderr=str(pair / "first.log"))
        yield process


@pytest.fixture(scope="module")
def events(pair: Path, warm: Nursery) -> dict[str, int]:
    config, counts = write_config(pair, pair / "counted"), pair / "counts.json"
    child = warm.fork(
        f"{JOB}:command", config=str(config), stderr=str(pair / "counted.log"), count_into=str(counts)
    )
    assert child.wait() == 0
    return json.loads(counts.read_text())


def assert_resumes_as_undisturbed(warm: Nursery, config: Path, undisturbed: Path) -> str:
    """Gives what the second run said."""
    log = config.with_suffix(".again")
    child = warm.fork(f"{JOB}:command", config=str(config), stderr=str(log), resume=True)
    assert child.wait() == 0, log.read_text()
    for name in RESULTS:
        assert (config.with_suffix("") / name).read_bytes() == (undisturbed / name).read_bytes(), name
    return log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_in_any_phase_it_ends_in_time_and_resumes_exactly(
    tmp_path: Path, pair: Path, warm: Nursery, events: dict[str, int], part: str
) -> None:
    config, log = write_config(pair, tmp_path / "run"), tmp_path / "log"
    event = random.Random(part).randrange(events[part])
    child = warm.fork(f"{JOB}:command", config=str(config), stderr=str(log), part=part, event=event)
    assert child.wait() == 75, log.read_text()
    struck = json.loads(config.with_suffix(".strike").read_text())["time"]
    assert time.monotonic() - struck < SECONDS
    last = log.read_text().strip().splitlines()[-1]
    assert last.startswith("crosscoders: stopped by SIGTERM")
    assert last.endswith(f"Go on with: crosscoders run {config} --resume")
    assert_resumes_as_undisturbed(warm, config, pair / "undisturbed")


@pytest.mark.slow
def test_a_run_that_was_trained_is_only_measured_again(
    tmp_path: Path, pair: Path, warm: Nursery, events: dict[str, int]
) -> None:
    config, log = write_config(pair, tmp_path / "run"), tmp_path / "log"
    event = events["measuring"] // 2
    child = warm.fork(f"{JOB}:command", config=str(config), stderr=str(log), part="measuring", event=event)
    assert child.wait() == 75
    weights = tmp_path / "run" / "crosscoder" / "model.safetensors"
    assert weights.read_bytes() == (pair / "undisturbed" / "crosscoder" / "model.safetensors").read_bytes()
    assert "tok" in log.read_text()  # the progress bar of the training
    assert "tok" not in assert_resumes_as_undisturbed(warm, config, pair / "undisturbed")


@pytest.mark.slow
def test_from_the_first_line_on_the_command_itself_ends_in_time(
    tmp_path: Path, pair: Path, warm: Nursery
) -> None:
    config = write_config(pair, tmp_path / "run")
    process = subprocess.Popen(
        [sys.executable, "-m", "crosscoders.cli", "run", str(config), "--preempt-exit-code", "42"],
        stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    first = process.stderr.readline()
    begun = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    said = process.stderr.read()
    assert process.wait(SECONDS) == 42, first + said
    assert time.monotonic() - begun < SECONDS
    assert "--resume" in said
    process.stderr.close()
    assert_resumes_as_undisturbed(warm, config, pair / "undisturbed")
