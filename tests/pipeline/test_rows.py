"""Where a run's rows come from changes no weight: live, from a store, filling one, in the background."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crosscoders._io import is_temporary
from crosscoders.crosscoder import Crosscoder
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.fit import fit_crosscoder
from crosscoders.pipeline.rows import training_rows
from crosscoders.pipeline.run import run
from crosscoders.pipeline.system_config import SystemConfig
from crosscoders.store import ActivationStore
from tests.pipeline.sweep_case import toy_config, toy_corpus, toy_sources
from tests.survival.small_run import make_pair, write_config

SOURCES, CORPUS = toy_sources(), toy_corpus()


def trained(out: Path, **system: Any) -> dict[str, torch.Tensor]:
    config = toy_config(out, training={"checkpoint_every_steps": 0}, system=SystemConfig(**system))
    return fit_crosscoder(SOURCES, CORPUS, config).state_dict()


def assert_same_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_store_live_and_live_and_storing_give_the_same_weights(tmp_path: Path) -> None:
    store = str(tmp_path / "rows")
    live = trained(tmp_path)
    assert_same_weights(trained(tmp_path, store=store, shard_bytes=4000), live)
    filled = ActivationStore(store)
    assert filled.is_complete
    assert filled.verify() == []
    assert len(list(Path(store).glob("*.safetensors"))) > 2
    assert_same_weights(trained(tmp_path, store=store), live)


def test_harvesting_in_a_thread_gives_the_same_weights(tmp_path: Path) -> None:
    found = trained(tmp_path, overlap="thread", store=str(tmp_path / "rows"))
    assert_same_weights(found, trained(tmp_path))


def test_the_dtype_of_the_rows_is_the_configurations(tmp_path: Path) -> None:
    store = str(tmp_path / "rows")
    found = trained(tmp_path, rows_dtype="float32", store=store)
    assert ActivationStore(store).dtype is torch.float32
    assert not torch.equal(found["W_dec"], trained(tmp_path)["W_dec"])
    with pytest.raises(ValueError, match="another harvest"):
        trained(tmp_path, store=store)


def test_modules_in_memory_cannot_go_to_another_process(tmp_path: Path) -> None:
    config = toy_config(tmp_path, base="module:Toy", system=SystemConfig(overlap="process"))
    with (
        pytest.raises(ValueError, match="live in this process"),
        training_rows(SOURCES, CORPUS, config, seed=0),
    ):
        raise AssertionError("it opened")


def test_the_tokens_for_another_process_lie_in_the_run_folder_and_go_with_the_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = toy_config(out, system=SystemConfig(overlap="process"))
    killed = out / ".tokens.npy.4711.0123abcd.tmp"  # what a run that got SIGKILL left there
    out.mkdir()
    killed.write_bytes(b"ids")
    with training_rows(SOURCES, CORPUS, config, seed=0):  # nothing is asked for, so no process is started
        (file,) = out.iterdir()
        assert file != killed
        assert is_temporary(file.name)  # as `claim_folder` removes them
        assert torch.equal(torch.from_numpy(np.load(file)), CORPUS.train)
    assert list(out.iterdir()) == []


@pytest.mark.slow
def test_a_process_of_its_own_gives_the_same_weights(tmp_path: Path) -> None:
    make_pair(str(tmp_path / "pair"))
    for out, system in (("alone", ""), ("beside", '[system]\noverlap = "process"')):
        path = write_config(tmp_path / "pair", tmp_path / out, extra=system)
        run(RunConfig.from_toml(path))
    alone, beside = (
        Crosscoder.from_pretrained(tmp_path / name / "crosscoder") for name in ("alone", "beside")
    )
    assert_same_weights(beside.state_dict(), alone.state_dict())
