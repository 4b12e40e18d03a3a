"""TensorBoard, Weights & Biases and trackio, as installed and without network: what they hold is right."""

import importlib
import importlib.util
import logging
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed

from crosscoders.training import History
from crosscoders.training.loggers import (
    CsvLogger,
    Logger,
    TensorBoardLogger,
    TrackioLogger,
    WandbLogger,
    make_loggers,
)
from crosscoders.training.loggers.wandb import wandb_mode
from tests.training.logged_run import Interrupt, trained, undisturbed
from tests.training.toy_run import Stream, same_bits, toy_trainer, weights

BACKENDS: dict[str, Callable[[Path], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "trackio": TrackioLogger,
    "wandb": WandbLogger,
}
# Weights & Biases starts a process of its own, which takes a second or two.
NAMES = [pytest.param(n, marks=[pytest.mark.slow] if n == "wandb" else []) for n in BACKENDS]


def require(package: str) -> None:
    """Skip where a logger's package is not installed."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs the extra {package}, which is not installed")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """No network for this process, no account, no database of the user's; gives the addresses asked for."""
    asked: list[Any] = []

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost"):
            return connect(self, address)
        asked.append(address)
        raise OSError("the network is unreachable")

    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return asked


@pytest.mark.parametrize("name", ["csv", *NAMES])
def test_a_folder_that_cannot_be_written_changes_nothing(
    tmp_path: Path, offline: list[Any], name: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    at = tmp_path / "file" / "run"
    if name != "csv":
        require(name)
    logger = CsvLogger(at / "training.csv") if name == "csv" else BACKENDS[name](at)
    assert same_bits(weights(trained([logger]).crosscoder), undisturbed())


@pytest.mark.parametrize("name", list(BACKENDS))
def test_a_missing_package_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    module = "torch.utils.tensorboard" if name == "tensorboard" else name
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"'{name}' was asked for.*pip install \"crosscoders\[{name}\]\""):
        make_loggers([name], tmp_path)


def test_loggers_are_made_by_name_and_csv_always(tmp_path: Path) -> None:
    require("tensorboard")
    assert [type(logger) for logger in make_loggers([], tmp_path)] == [CsvLogger]
    made = make_loggers(["tensorboard"], tmp_path, config={"path": tmp_path})
    assert [type(logger) for logger in made] == [CsvLogger, TensorBoardLogger]
    for names in (["mlflow"], ["tensorboard", "tensorboard"]):
        with pytest.raises(ValueError, match=r"expected different names of \['tensorboard', 'trackio'"):
            make_loggers(names, tmp_path)


def tensorboard_steps(folder: Path, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard itself reads, with what was taken back left out."""
    module = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = module.EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_reads_each_step_once_also_after_resuming(tmp_path: Path) -> None:
    require("tensorboard")
    history, numbers = History(), {"log_every_steps": 1, "checkpoint_every_steps": 3}
    folder, checkpoints = tmp_path / "tensorboard", tmp_path / "checkpoints"
    for stop_at in (8, None):
        callbacks = [TensorBoardLogger(folder), history, Interrupt(stop_at)]
        trainer = toy_trainer(callbacks=callbacks, config=numbers, checkpoint_dir=checkpoints)
        if stop_at is None:
            trainer.resume(checkpoints)
            trainer.fit(Stream(10))
        else:
            with pytest.raises(KeyboardInterrupt):
                trainer.fit(Stream(10))
    found = tensorboard_steps(folder, "loss")
    assert [step for step, _ in found] == list(range(1, 11))
    assert [value for _, value in found] == pytest.approx([row["loss"] for row in history.rows])


def wandb_rows(folder: Path) -> list[dict[str, Any]]:
    """Rows of the offline runs below a folder, from their files: a header of 7 bytes, then records.

    A record is a checksum of 4 bytes, a length of 2, a kind of 1 (1 for a whole one) and a protocol buffer.
    """
    messages = importlib.import_module("wandb.proto.wandb_internal_pb2")
    rows = []
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        content, at = path.read_bytes(), 7
        while at + 7 <= len(content):
            length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
            if kind != 1 or at + 7 + length > len(content):
                break
            record = messages.Record()
            record.ParseFromString(content[at + 7 : at + 7 + length])
            at += 7 + length
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): item.value_json for item in items})
    return rows


@pytest.mark.slow
def test_wandb_keeps_the_run_in_its_folder_without_network_and_key(
    tmp_path: Path,
    offline: list[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    require("wandb")
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    logger, history = WandbLogger(tmp_path, config={"lr": 1e-3}), History()
    trainer = trained([logger, history])
    assert same_bits(weights(trainer.crosscoder), undisturbed())
    assert not offline
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert len(list(tmp_path.glob(f"wandb/offline-run-*-{logger.run_id}"))) == 1
    assert "Training goes on" not in caplog.text
    give_up = time.monotonic() + 20
    while len(rows := wandb_rows(tmp_path)) < 6 and time.monotonic() < give_up:
        time.sleep(0.1)  # another process writes the file
    assert [int(row["_step"]) for row in rows] == [2, 4, 6, 8, 10, 12]
    assert float(rows[-1]["loss"]) == [row["loss"] for row in history.rows if "loss" in row][-1]
    assert "evaluate/error" in rows[-1]


@pytest.mark.slow
def test_members_of_a_sweep_log_side_by_side_to_runs_of_their_own(tmp_path: Path, offline: list[Any]) -> None:
    require("wandb")
    loggers = [WandbLogger(tmp_path / str(at)) for at in range(2)]
    for logger in loggers:
        logger.start(step=0)
    for step in (1, 2):
        for at, logger in enumerate(loggers):
            logger.write({"loss": float(10 * at + step)}, step=step)
    for logger in loggers:
        logger.close()
    for at in range(2):
        give_up = time.monotonic() + 20
        while len(rows := wandb_rows(tmp_path / str(at))) < 2 and time.monotonic() < give_up:
            time.sleep(0.1)  # another process writes the file
        assert [float(row["loss"]) for row in rows] == [10.0 * at + 1, 10.0 * at + 2]
    assert not offline


def test_a_resumed_run_keeps_its_identity(tmp_path: Path) -> None:
    require("wandb")
    first, second = WandbLogger(tmp_path), WandbLogger(tmp_path)
    assert first.run_id != second.run_id
    second.load_state_dict(first.state_dict())
    assert first.run_id == second.run_id


def test_wandb_is_online_only_with_a_key_and_a_server_that_answers(
    offline: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert wandb_mode()[0] == "offline"
    assert "no API key for api.wandb.ai" in wandb_mode()[1]
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert wandb_mode()[0] == "offline"
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password secret\n")
        (tmp_path / ".netrc").write_text("machine 127.0.0.1 login user password secret\n")
        (tmp_path / ".netrc").chmod(0o600)
        assert wandb_mode() == ("online", "127.0.0.1 answers")
        for asked, mode in (("offline", "offline"), ("dryrun", "offline"), ("disabled", "disabled")):
            monkeypatch.setenv("WANDB_MODE", asked)
            assert wandb_mode()[0] == mode
    monkeypatch.setenv("WANDB_MODE", "online")
    assert wandb_mode()[0] == "offline"
    assert "cannot be reached" in wandb_mode()[1]


def trackio_rows(name: str) -> list[dict[str, Any]]:
    """What trackio's database holds of a run."""
    return importlib.import_module("trackio.sqlite_storage").SQLiteStorage.get_logs("crosscoders", name)


def test_trackio_holds_each_step_once_also_after_resuming(
    tmp_path: Path, offline: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    require("trackio")
    for module in ("trackio", "trackio.utils", "trackio.sqlite_storage"):
        monkeypatch.setattr(importlib.import_module(module), "TRACKIO_DIR", tmp_path / "trackio")
    numbers, checkpoints = {"log_every_steps": 1, "checkpoint_every_steps": 3}, tmp_path / "checkpoints"
    names = set()
    for stop_at in (8, None):
        logger = TrackioLogger(tmp_path)
        callbacks = [logger, Interrupt(stop_at)]
        trainer = toy_trainer(callbacks=callbacks, config=numbers, checkpoint_dir=checkpoints)
        if stop_at is None:
            trainer.resume(checkpoints)
            trainer.fit(Stream(10))
        else:
            with pytest.raises(KeyboardInterrupt):
                trainer.fit(Stream(10))
        names.add(logger.name)
    [name] = names
    assert [row["step"] for row in trackio_rows(name)] == list(range(1, 11))
    assert not offline


@pytest.mark.parametrize("name", NAMES)
def test_every_backend_works_and_leaves_the_weights_as_they_are(
    tmp_path: Path,
    offline: list[Any],
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    require(name)
    state = torch.get_rng_state()
    trainer = trained(make_loggers([name], tmp_path, config={"lr": 1e-2}))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert same_bits(weights(trainer.crosscoder), undisturbed())
    assert torch.equal(torch.get_rng_state(), state)
