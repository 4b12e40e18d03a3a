"""A run on several ranks that fails ends with one clear message, whichever rank failed and however."""

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from crosscoders.parallel.failure import Board, one_clear_message
from tests.parallel.checkpoint_run import EVERY, assert_same_state, failed_at, train
from tests.parallel.rank_pool import on_ranks

ROOT = Path(__file__).resolve().parents[2]
RESUME = "Resume it."


class Away(SystemExit):
    """An end that is no failure, as a preemption is."""


def end(board: Board | None, error: BaseException | None, said: list[str]) -> int | str | None:
    """The status with which a rank ends whose work raises this error; what it says goes to `said`."""
    try:
        with one_clear_message(said.append, resume=RESUME, passes=(Away,), board=board):
            if error is not None:
                raise error
    except SystemExit as err:
        return err.code
    return 0


def boards(n: int) -> list[Board]:
    """One board per rank of a run, all in this process."""
    store = dist.HashStore()
    return [Board(store, rank, size=n) for rank in range(n)]


def board_beside_a_dead_rank() -> Board:
    """The board of rank 0 of a run of two whose rank 1 was killed."""
    process = subprocess.Popen(["sleep", "60"])
    process.kill()
    process.wait()
    store = dist.HashStore()
    store.set("process-1", f"{process.pid} {socket.gethostname()}")
    return Board(store, 0, size=2)


def broken_collective(folder: str) -> tuple[int | str | None, list[str]]:
    """Rank 1 misses rank 0 a while before that says why."""
    said: list[str] = []
    board = Board(dist.FileStore(f"{folder}/board", 2), dist.get_rank(), size=2)
    group = dist.new_group(timeout=timedelta(seconds=0.3))
    if dist.get_rank() == 0:
        time.sleep(1.0)
        return end(board, ValueError("expected\n  7 rows"), said), said
    try:
        with one_clear_message(said.append, resume=RESUME, board=board):
            dist.all_reduce(torch.ones(1), group=group)
    except SystemExit as err:
        return err.code, said
    return 0, said


def test_the_rank_that_raised_says_so_in_one_line_and_the_others_are_silent() -> None:
    said: list[str] = []
    first, second, third = boards(3)
    assert end(second, ValueError("expected\n  7 rows, got 3."), said) == 1
    assert end(first, dist.DistBackendError("peer"), said) == 1
    assert end(third, RuntimeError("[gloo] Connection closed by peer"), said) == 1
    assert said == ["rank 1 of 3 failed: ValueError: expected 7 rows, got 3. The run has ended. Resume it."]


def test_an_error_that_all_ranks_raise_is_told_once() -> None:
    said: list[str] = []
    assert [end(board, ValueError("no such file"), said) for board in boards(4)] == [1, 1, 1, 1]
    assert len(said) == 1


def test_real_broken_collectives_are_known_as_such(tmp_path: Path) -> None:
    (raised, told), (broken, silent) = on_ranks(2, broken_collective, folder=str(tmp_path))
    assert (raised, broken) == (1, 1)
    assert told == ["rank 0 of 2 failed: ValueError: expected 7 rows. The run has ended. Resume it."]
    assert silent == []


def test_a_survivor_names_the_rank_that_died_without_a_word() -> None:
    said: list[str] = []
    start = time.monotonic()
    assert end(board_beside_a_dead_rank(), RuntimeError("[gloo] Connection closed by peer"), said) == 1
    (line,) = said
    assert line.startswith("rank 1 (process ")
    assert "died without a word" in line
    assert line.endswith(RESUME)
    assert time.monotonic() - start < 2


def test_a_preemption_passes_unless_a_rank_failed() -> None:
    said: list[str] = []
    assert [end(board, Away(75), said) for board in boards(2)] == [75, 75]
    assert said == []
    assert end(board_beside_a_dead_rank(), Away(75), said) == 1
    assert "died without a word" in said[0]
    failed, other = boards(2)
    assert end(failed, ValueError("bad"), said) == 1
    assert end(other, Away(75), said) == 1
    assert len(said) == 2


def stopped(board: Board, said: list[str]) -> int | str | None:
    """The status of a rank that the launcher stops in the middle of its work."""
    try:
        with one_clear_message(said.append, resume=RESUME, board=board):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
    except SystemExit as err:
        return err.code
    return 0


def test_a_survivor_that_the_launcher_stops_still_tells_who_died() -> None:
    said: list[str] = []
    assert stopped(board_beside_a_dead_rank(), said) == 1
    assert ["died without a word" in line and line.endswith(RESUME) for line in said] == [True]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.slow
def test_a_job_that_is_stopped_from_outside_says_so_once() -> None:
    said: list[str] = []
    assert [stopped(board, said) for board in boards(2)] == [1, 1]
    assert ["SIGTERM" in line and line.endswith(RESUME) for line in said] == [True]


def test_one_process_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)
    said: list[str] = []
    with pytest.raises(ValueError, match="mine"):
        end(None, ValueError("mine"), said)
    assert end(boards(2)[0], None, said) == 0
    assert said == []


def under_torchrun(folder: Path, how: str, *, n: int) -> subprocess.CompletedProcess[str]:
    """A toy run on n ranks that ends as told."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    return subprocess.run(
        [*command, "-m", "tests.parallel.checkpoint_run", str(folder), how],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,  # starting takes most of it where the machine is busy
        check=False,
    )


def said_by(run: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines that ranks of the run said."""
    return [line.removeprefix("SAID ") for line in run.stdout.splitlines() if line.startswith("SAID ")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "n", "expected"),
    [
        ("raise", 2, "rank 1 of 2 failed: ValueError: the disk of this machine is gone. "),
        ("kill", 3, "died without a word"),
        ("write", 2, "died without a word"),
    ],
)
def test_a_failed_rank_ends_the_run_with_one_message_and_it_resumes(
    tmp_path: Path, how: str, n: int, expected: str
) -> None:
    failed = under_torchrun(tmp_path / "run", how, n=n)
    assert time.time() - failed_at(tmp_path / "run").stat().st_mtime < 30
    assert failed.returncode == 1
    (line,) = said_by(failed)
    assert expected in line
    assert line.startswith("rank 1 (process " if how != "raise" else "rank 1 of ")
    assert line.endswith(RESUME)
    assert [path.name for path in (tmp_path / "run").glob("[!.]*")] == [f"step-{EVERY:09d}"]
    on_ranks(n, train, folder=str(tmp_path / "run"), shape={"data": 1, "latents": n})
    train(str(tmp_path / "undisturbed"), {})
    assert_same_state(tmp_path / "run", tmp_path / "undisturbed")
