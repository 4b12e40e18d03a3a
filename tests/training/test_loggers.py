"""Loggers: rows survive a kill, and nothing that befalls a backend reaches the run; the progress bar."""

import csv
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import torch.distributed

from crosscoders.training import Callback, History, ProgressBar, StepReport, Trainer
from crosscoders.training.loggers import (
    CsvLogger,
    Logger,
    base,
)
from tests.training.logged_run import Interrupt, trained, undisturbed
from tests.training.toy_run import Stream, same_bits, toy_trainer, weights


def table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, each checked to have every column."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(None not in row and None not in row.values() for row in rows)
    return rows


class Follower(Callback):
    """Reads the file after each step, as one would from outside while the run goes on."""

    def __init__(self, path: Path) -> None:
        self.path, self.steps = path, []

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        self.steps.append([int(row["step"]) for row in table(self.path)])


def test_csv_rows_are_in_the_file_as_soon_as_their_step_is_done(tmp_path: Path) -> None:
    path = tmp_path / "run" / "training.csv"
    follower = Follower(path)
    trained([CsvLogger(path), follower], n_steps=6)
    assert follower.steps == [[], [2], [2], [2, 4], [2, 4], [2, 4, 6]]


def test_csv_has_one_row_per_step_with_its_evaluation_and_the_numbers_of_history(tmp_path: Path) -> None:
    history, path = History(), tmp_path / "training.csv"
    trained([history, CsvLogger(path)])
    rows = table(path)
    assert [int(row["step"]) for row in rows] == [2, 4, 6, 8, 10, 12]
    merged: dict[float, dict[str, int | float]] = {}
    for row in history.rows:
        merged.setdefault(row["step"], {}).update(row)
    found = [{name: float(text) for name, text in row.items() if text} for row in rows]
    assert found == list(merged.values())
    assert ["evaluate/error" in row for row in found] == [False, True, False, True, False, True]


def test_csv_of_a_resumed_run_is_that_of_one_without_interruption(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.csv", tmp_path / "broken.csv"
    numbers = {"log_every_steps": 2, "evaluate_every_steps": 5, "checkpoint_every_steps": 3}
    evaluation = {"evaluation": lambda c: {"norm": float(c.W_dec.norm())}}

    def run(path: Path, folder: Path, *, stop_at: int | None) -> None:
        stop = Interrupt(stop_at)
        trainer = toy_trainer(
            callbacks=[CsvLogger(path), stop], config=numbers, checkpoint_dir=folder, **evaluation
        )
        if folder.exists():
            trainer.resume(folder)
        trainer.fit(Stream(14))

    run(whole, tmp_path / "a", stop_at=None)
    with pytest.raises(KeyboardInterrupt):
        run(broken, tmp_path / "b", stop_at=11)  # the checkpoint is of step 9, the last row of step 10
    assert [int(row["step"]) for row in table(broken)] == [2, 4, 5, 6, 8, 10]
    with broken.open("a") as file:
        file.write("12,7")  # a torn row, as after a power cut
    run(broken, tmp_path / "b", stop_at=None)
    assert broken.read_bytes() == whole.read_bytes()
    assert [int(row["step"]) for row in table(whole)] == [2, 4, 5, 6, 8, 10, 12, 14]


def test_csv_goes_on_from_its_file_where_the_checkpoint_holds_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "training.csv"
    path.write_text("step,tokens,loss\n2,128,0.5\n4,256,0.25\n6,384,0.125\n8,5")
    logger = CsvLogger(path)
    logger.start(step=5)
    assert logger.rows == [{"step": 2, "tokens": 128, "loss": 0.5}, {"step": 4, "tokens": 256, "loss": 0.25}]
    logger.write({"tokens": 384, "loss": float("nan")}, step=6)
    assert path.read_text() == "step,tokens,loss\n2,128,0.5\n4,256,0.25\n6,384,nan\n"


def test_csv_of_a_new_run_forgets_the_file_of_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "training.csv"
    path.write_text("step,tokens\n1,2\n")
    CsvLogger(path).start(step=0)
    assert path.read_text() == ""


KILLED = """
import os, signal, sys
from pathlib import Path
from crosscoders.training import Callback
from crosscoders.training.loggers import CsvLogger
from tests.training.toy_run import Stream, toy_trainer
class Kill(Callback):
    def on_step_end(self, trainer, report):
        if report.step == 9:
            os.kill(os.getpid(), signal.SIGKILL)
out = Path(sys.argv[1])
callbacks = [CsvLogger(out / "training.csv"), Kill()]
config = {"log_every_steps": 2, "checkpoint_every_steps": 3}
toy_trainer(callbacks=callbacks, config=config, checkpoint_dir=out / "checkpoints").fit(Stream(12))
"""


@pytest.mark.slow
def test_csv_survives_a_kill_and_holds_each_step_once_after_resuming(tmp_path: Path) -> None:
    path = tmp_path / "training.csv"
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # the last bits of a sum depend on them
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], check=False, env={**os.environ, **threads}
    )
    assert killed.returncode == -signal.SIGKILL
    assert [int(row["step"]) for row in table(path)] == [2, 4, 6, 8]
    numbers = {"log_every_steps": 2, "checkpoint_every_steps": 3}
    logger, whole = CsvLogger(path), CsvLogger(tmp_path / "whole.csv")
    trainer = toy_trainer(callbacks=[logger], config=numbers, checkpoint_dir=tmp_path / "checkpoints")
    trainer.resume(tmp_path / "checkpoints")
    assert trainer.step == 6
    trainer.fit(Stream(12))
    toy_trainer(callbacks=[whole], config={"log_every_steps": 2}).fit(Stream(12))
    assert path.read_bytes() == whole.path.read_bytes()


class Broken(Logger):
    """A logger whose backend raises an error at one moment of the run."""

    def __init__(self, moment: str, error: BaseException) -> None:
        self.moment, self.error, self.n_writes = moment, error, 0

    def start(self, *, step: int) -> None:
        self.reach("start")

    def write(self, values: dict[str, int | float], *, step: int) -> None:
        self.n_writes += 1
        self.reach(f"write {self.n_writes}")

    def close(self) -> None:
        self.reach("close")

    def reach(self, moment: str) -> None:
        if moment == self.moment:
            raise self.error


class BrokenInBackground(Broken):
    """The same, in a thread."""

    in_background: ClassVar[bool] = True


ERRORS = {
    "start": OSError("gone"),
    "write 1": UserWarning("gone"),
    "write 4": SystemExit("gone"),
    "close": MemoryError("gone"),
}


@pytest.mark.parametrize("cls", [Broken, BrokenInBackground])
@pytest.mark.parametrize("moment", list(ERRORS))
def test_an_error_of_a_backend_is_said_once_and_changes_nothing(
    caplog: pytest.LogCaptureFixture, moment: str, cls: type[Broken]
) -> None:
    error = ERRORS[moment]
    logger = cls(moment, error)
    trainer = trained([logger])
    assert same_bits(weights(trainer.crosscoder), undisturbed())
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1
    assert f"{type(error).__name__}: gone. Training goes on" in said[0]
    assert logger.n_writes == {"start": 0, "write 1": 1, "write 4": 4, "close": 10}[moment]


def test_an_interrupt_is_no_failure_of_a_logger() -> None:
    with pytest.raises(KeyboardInterrupt):
        trained([Broken("write 2", KeyboardInterrupt())])


class Hanging(Logger):
    """A backend that never answers."""

    in_background: ClassVar[bool] = True
    released = threading.Event()

    def start(self, *, step: int) -> None:
        self.released.wait(30)

    def write(self, values: dict[str, int | float], *, step: int) -> None:
        raise AssertionError("nothing is written after the run has ended")

    def close(self) -> None:
        """Nothing to close."""


def test_a_backend_that_hangs_holds_up_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_SECONDS_AT_THE_END", 0.1)
    trainer = trained([Hanging()])
    Hanging.released.set()
    assert same_bits(weights(trainer.crosscoder), undisturbed())
    assert "did not finish within 0 s" in caplog.text


def test_a_backend_that_falls_behind_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    logger, release = Hanging(), threading.Event()
    logger.released = release
    logger.on_fit_start(SimpleNamespace(step=0))
    for step in range(1100):
        logger.on_evaluate(SimpleNamespace(step=step, tokens_seen=step), {"x": 1.0})
    release.set()
    logger.on_fit_end(SimpleNamespace())
    assert caplog.text.count("does not keep up") == 1


def test_only_the_first_rank_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    trainer = toy_trainer()
    logger = CsvLogger(tmp_path / "training.csv")
    logger.on_fit_start(trainer)
    logger.on_evaluate(trainer, {"error": 1.0})
    assert not logger.path.exists()
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    logger.on_fit_start(trainer)
    assert logger.path.exists()


class Waiting(Stream):
    """Batches that tell who waited for whom."""

    @property
    def waits(self) -> SimpleNamespace:
        return SimpleNamespace(trainer_seconds=0.5 * self.next_index, harvest_seconds=0.0)


def test_the_progress_bar_says_who_waits_for_whom(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(map(float, range(100)))
    monkeypatch.setattr("crosscoders.training.callbacks.time", SimpleNamespace(monotonic=lambda: next(clock)))
    trainer = toy_trainer(callbacks=[ProgressBar()], config={"log_every_steps": 1})
    trainer.fit(Waiting(4))
    assert "waiting: trainer 50%, harvest 0%" in capsys.readouterr().err
    assert trainer.waits is None  # the buffer is let go with the end of the run
    toy_trainer(callbacks=[ProgressBar()], config={"log_every_steps": 1}).fit(Stream(4))
    assert "waiting" not in capsys.readouterr().err
