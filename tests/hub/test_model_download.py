"""Language models from the Hub: one commit, only the files that are needed, nothing half-written."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from crosscoders.errors import CheckpointError
from crosscoders.models import load_model
from tests.hub.stand_in import Fault, StandIn
from tests.models.checkpoints import INDEX, qwen2, tokens, write

REPO = "someone/model"
UP_TO = "blocks.1.hook_resid_post"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    folder = write(tmp_path / "source", qwen2(num_hidden_layers=4), is_sharded=True)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def activations(where: str | Path, **settings: object) -> torch.Tensor:
    return load_model(where, name="m", **settings).capture(tokens(2, 9), [UP_TO])[UP_TO]


def test_only_the_needed_shards_of_one_commit_are_downloaded(
    hub: StandIn, files: dict[str, bytes], tmp_path: Path
) -> None:
    commit = hub.add(REPO, files)
    model = load_model(REPO, name="m", up_to=UP_TO)
    assert (model.revision, model.model_id, model.n_layers_held) == (commit, REPO, 2)
    assert torch.equal(model.capture(tokens(2, 9), [UP_TO])[UP_TO], activations(tmp_path / "source"))
    needed = {
        shard
        for name, shard in json.loads(files[INDEX])["weight_map"].items()
        if name.startswith(("model.embed", "model.layers.0.", "model.layers.1."))
    }
    asked = {line.rsplit("/", 1)[1] for line in (seen.line for seen in hub.lines(r"-of-\d+\.safetensors"))}
    assert asked == needed < {name for name in files if "-of-" in name}
    assert {seen.line.split("/")[4] for seen in hub.lines("/resolve/")} == {"main", commit}
    assert len(hub.lines("/resolve/main/")) <= 2  # HEAD and GET of config.json


def test_the_whole_model_downloads_and_computes_what_it_did(hub: StandIn, files: dict[str, bytes]) -> None:
    hub.add(REPO, files)
    expected = load_model(qwen2(num_hidden_layers=4), name="live").logits(tokens(2, 9))
    assert torch.equal(load_model(REPO, name="m").logits(tokens(2, 9)), expected)


def test_a_revision_stays_what_it_was_when_the_branch_moves(hub: StandIn, files: dict[str, bytes]) -> None:
    first, before = hub.add(REPO, files), activations(REPO, up_to=UP_TO)
    other = {
        name: raw[: len(raw) // 2].ljust(len(raw), b"<") if "-of-" in name else raw
        for name, raw in files.items()
    }
    second = hub.add(REPO, other)
    assert torch.equal(activations(REPO, up_to=UP_TO, revision=first), before)
    moved = load_model(REPO, name="m", up_to=UP_TO)
    assert moved.revision == second != first
    assert not torch.equal(moved.capture(tokens(2, 9), [UP_TO])[UP_TO], before)


def test_offline_the_cache_is_enough_for_what_was_downloaded(
    hub: StandIn, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, before = hub.add(REPO, files), activations(REPO, up_to=UP_TO)
    n_asked = len(hub.seen)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = load_model(REPO, name="m", up_to=UP_TO)
    assert model.revision == commit
    assert torch.equal(model.capture(tokens(2, 9), [UP_TO])[UP_TO], before)
    with pytest.raises(CheckpointError, match=r"model-.*: the index names this file, but it is missing"):
        load_model(REPO, name="m")
    assert len(hub.seen) == n_asked


@pytest.mark.parametrize("status", [401, 403, 404, pytest.param(500, marks=pytest.mark.slow)])
def test_a_hub_that_refuses_is_an_error_that_names_the_model(
    hub: StandIn, files: dict[str, bytes], status: int
) -> None:
    hub.add(REPO, files)
    hub.faults.append(Fault("config.json", status=status, times=99))
    with pytest.raises(ValueError, match="load_model 'm': 'someone/model' is neither a local directory"):
        load_model(REPO, name="m", up_to=UP_TO)


@pytest.mark.parametrize(
    "how", [{"status": 403}, pytest.param({"drop_after": 100}, marks=pytest.mark.slow)]
)  # the client retries a dropped connection for some seconds
def test_an_interrupted_download_leaves_no_file_under_its_final_name(
    hub: StandIn, files: dict[str, bytes], how: dict[str, int], tmp_path: Path
) -> None:
    hub.add(REPO, files)
    hub.faults.append(Fault("GET /large", times=99, **how))
    with pytest.raises(OSError, match=r"403|could not be downloaded|size"):
        load_model(REPO, name="m", up_to=UP_TO)
    assert not [*(tmp_path / "cache").rglob("snapshots/*/*.safetensors")]
    hub.faults.clear()
    assert torch.equal(activations(REPO, up_to=UP_TO), activations(tmp_path / "source"))


def test_an_index_that_leads_elsewhere_asks_for_nothing(hub: StandIn, files: dict[str, bytes]) -> None:
    index = json.loads(files[INDEX])
    index["weight_map"]["model.embed_tokens.weight"] = "../../secret.safetensors"
    hub.add(REPO, {**files, INDEX: json.dumps(index).encode()})
    with pytest.raises(CheckpointError, match=r"'../../secret.safetensors' is not the name of a file inside"):
        load_model(REPO, name="m", up_to=UP_TO)
    assert hub.lines("secret") == []


def test_a_repository_of_pickles_alone_is_refused(hub: StandIn, files: dict[str, bytes]) -> None:
    hub.add(REPO, {"config.json": files["config.json"], "pytorch_model.bin": b"\x80\x04."})
    with pytest.raises(CheckpointError, match="only safetensors are read"):
        load_model(REPO, name="m")
    assert hub.lines("pytorch_model") == []
