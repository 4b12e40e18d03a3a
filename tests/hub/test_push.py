"""To the Hub: one commit, round trip bit for bit, over nothing that was not ours."""

import json
from pathlib import Path

import pytest
import torch

from crosscoders.artifact import write_artifact
from crosscoders.errors import CheckpointError
from crosscoders.hub import from_pretrained, push_to_hub
from crosscoders.hub.card import is_unedited
from tests.hub.stand_in import Fault, StandIn
from tests.hub.toys import header_of, rows, saved, toy

# huggingface_hub 2.4 uploads in a way that its own HTTP client calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
NAME = "someone/cross"
SCORES = {"n_tokens": 4096, "l0": 2.5, "explained_variance": {"base": 0.75}}
EVALUATION = {"reconstruction": {"all text": SCORES}}


def test_push_then_pull_gives_the_same_crosscoder(hub: StandIn) -> None:
    crosscoder = toy()
    commit = push_to_hub(crosscoder, NAME, training_summary={"steps": 7}, evaluation=EVALUATION)
    again = from_pretrained(NAME)
    assert again.origin == f"{NAME}@{commit}"
    assert again.config == crosscoder.config
    assert {k: v.tolist() for k, v in again.state_dict().items() if k != "selection_weight"} == {
        k: v.tolist() for k, v in crosscoder.state_dict().items() if k != "selection_weight"
    }
    assert torch.equal(again.reconstruct(rows()), crosscoder.reconstruct(rows()))
    assert len(hub.lines("POST .*/commit/")) == 1
    names = ["README.md", "config.json", "evaluation.json", "model.safetensors"]
    assert sorted(hub.files(NAME)) == [".gitattributes", *names]
    assert json.loads(hub.files(NAME)["evaluation.json"]) == EVALUATION


def test_a_run_folder_goes_up_with_its_evaluation_and_the_very_weights(hub: StandIn, tmp_path: Path) -> None:
    saved(tmp_path / "run" / "crosscoder")
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps(EVALUATION))
    push_to_hub(tmp_path / "run", NAME)
    files = hub.files(NAME)
    assert files["model.safetensors"] == (tmp_path / "run" / "crosscoder" / "model.safetensors").read_bytes()
    assert json.loads(files["evaluation.json"]) == EVALUATION
    assert "0.75" in files["README.md"].decode()
    assert from_pretrained(NAME).config == toy().config


def test_an_artifact_folder_goes_up_as_it_is(hub: StandIn, tmp_path: Path) -> None:
    saved(tmp_path / "a")
    push_to_hub(str(tmp_path / "a"), NAME, card=False)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert {name: hub.files(NAME)[name] for name in expected} == expected
    assert "README.md" not in hub.files(NAME)
    with pytest.raises(ValueError, match="carries its own training_summary"):
        push_to_hub(tmp_path / "a", NAME, training_summary={})


def test_a_second_push_replaces_ours_and_removes_what_it_no_longer_has(hub: StandIn) -> None:
    old = push_to_hub(toy(), NAME, evaluation=EVALUATION)
    new = push_to_hub(toy(seed=3), NAME)
    assert old != new
    assert "evaluation.json" not in hub.files(NAME)
    assert torch.equal(from_pretrained(NAME).W_enc, toy(seed=3).W_enc)
    assert torch.equal(from_pretrained(NAME, revision=old).W_enc, toy().W_enc)


def test_the_same_again_makes_no_commit(hub: StandIn) -> None:
    first = push_to_hub(toy(), NAME)
    assert push_to_hub(toy(), NAME) == first
    assert len(hub.lines("POST .*/commit/")) == 1


def test_sub_folders_and_branches_do_not_touch_each_other(hub: StandIn) -> None:
    for seed in (1, 2):
        push_to_hub(toy(seed=seed), NAME, subfolder=f"sweep/k{seed}")
    push_to_hub(toy(seed=3), NAME, revision="next", subfolder="sweep/k1")
    for seed in (1, 2):
        assert torch.equal(from_pretrained(NAME, subfolder=f"sweep/k{seed}").W_enc, toy(seed=seed).W_enc)
    ahead = from_pretrained(NAME, revision="next", subfolder="sweep/k1")
    assert torch.equal(ahead.W_enc, toy(seed=3).W_enc)


FOREIGN = [
    {"config.json": b'{"d_in": 3}', "cc_weights.pt": b"\x80"},
    {"config.json": b"not json"},
    {"cfg.json": b"{}"},
    {"model.safetensors": b"somebody's weights"},
    {"README.md": b"# My thesis\n"},
    {"README.md": b"---\nlicense: mit\n---\nA text of my own.\n"},
]


@pytest.mark.parametrize("files", FOREIGN, ids=lambda files: "+".join(files))
@pytest.mark.parametrize("subfolder", [None, "sub"])
def test_somebody_elses_files_are_never_overwritten(
    hub: StandIn, files: dict[str, bytes], subfolder: str | None
) -> None:
    prefix = f"{subfolder}/" if subfolder else ""
    theirs = {prefix + name: content for name, content in files.items()}
    hub.add(NAME, theirs)
    with pytest.raises(FileExistsError, match=f"{NAME}@main.*did not write"):
        push_to_hub(toy(), NAME, subfolder=subfolder)
    assert hub.files(NAME) == theirs
    assert not hub.lines("POST .*/commit/")


def test_a_file_beside_ours_stays_and_one_in_the_way_stops_the_push(hub: StandIn) -> None:
    push_to_hub(toy(), NAME)
    hub.add(NAME, {**hub.files(NAME), "LICENSE": b"MIT"})
    push_to_hub(toy(seed=2), NAME)
    assert hub.files(NAME)["LICENSE"] == b"MIT"
    hub.add(NAME, {**hub.files(NAME), "evaluation.json": b"{}"})
    with pytest.raises(FileExistsError, match=r"evaluation.json"):
        push_to_hub(toy(), NAME, evaluation=EVALUATION)


def test_a_fresh_repositorys_metadata_is_kept(hub: StandIn) -> None:
    hub.add(NAME, {".gitattributes": b"", "README.md": b"---\nlicense: apache-2.0\n---\n"})
    push_to_hub(toy(), NAME)
    card = hub.files(NAME)["README.md"].decode()
    assert card.startswith("---\nlicense: apache-2.0\nlibrary_name: crosscoders\n")
    assert is_unedited(card)


def test_an_edited_card_is_kept(hub: StandIn) -> None:
    push_to_hub(toy(), NAME)
    edited = hub.files(NAME)["README.md"].replace(b"## Limits", b"## My limits")
    hub.add(NAME, {**hub.files(NAME), "README.md": edited})
    with pytest.raises(FileExistsError, match=r"README.md.*card=False"):
        push_to_hub(toy(seed=2), NAME)
    push_to_hub(toy(seed=2), NAME, card=False)
    assert hub.files(NAME)["README.md"] == edited
    assert torch.equal(from_pretrained(NAME).W_enc, toy(seed=2).W_enc)


def test_a_commit_by_another_in_between_is_not_lost(hub: StandIn) -> None:
    push_to_hub(toy(), NAME)
    theirs = {**hub.files(NAME), "LICENSE": b"MIT"}
    hub.before_commit = lambda: hub.add(NAME, theirs)
    with pytest.raises(OSError, match="412"):
        push_to_hub(toy(seed=2), NAME)
    assert hub.files(NAME) == theirs


@pytest.mark.parametrize("at", ["POST /api/repos", "GET /api/models", "POST .*/batch", "POST .*/commit/"])
@pytest.mark.parametrize(
    ("status", "error"), [(401, PermissionError), (403, PermissionError), (400, OSError)]
)
def test_a_refused_push_commits_nothing(hub: StandIn, at: str, status: int, error: type[OSError]) -> None:
    hub.faults += [Fault(at, status=status, times=100)]
    with pytest.raises(OSError, match=f"push_to_hub|{NAME}") as caught:
        push_to_hub(toy(), NAME)
    assert type(caught.value) is error
    assert not any("config.json" in hub.files(name) for name in hub.repositories)


def test_a_damaged_folder_never_leaves(hub: StandIn, tmp_path: Path) -> None:
    saved(tmp_path / "a")
    weights = tmp_path / "a" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(CheckpointError, match="SHA-256"):
        push_to_hub(tmp_path / "a", NAME)
    assert hub.seen == []


def test_the_header_of_a_pushed_artifact_holds_what_readers_need(hub: StandIn, tmp_path: Path) -> None:
    push_to_hub(toy(), NAME, training_summary={"steps": 7})
    for name, content in hub.files(NAME).items():
        (tmp_path / name).write_bytes(content)
    header = header_of(tmp_path)
    source = header["crosscoder"]["sources"][0]
    assert {key: source[key] for key in ("model_id", "revision", "hook_name", "d_model", "scale")} == {
        "model_id": "owner/base-model",
        "revision": "f" * 40,
        "hook_name": "blocks.1.hook_resid_pre",
        "d_model": 6,
        "scale": 0.2,
    }
    assert source["tokenizer_fingerprint"] == "ab" * 32
    assert header["threshold"] == pytest.approx(0.015)
    assert header["training_summary"] == {"steps": 7}


def test_a_card_that_the_artifact_itself_lists_is_the_card(hub: StandIn, tmp_path: Path) -> None:
    """Another in its place would not have the checksum that config.json gives."""
    crosscoder = toy()
    tensors = {**crosscoder.state_dict(), "selection_weight": crosscoder.selection_scale()}
    extra = {"README.md": b"# Mine\n", "notes.txt": b"kept"}
    write_artifact(tmp_path / "a", config=crosscoder.config.to_dict(), tensors=tensors, extra_files=extra)
    (tmp_path / "a" / "secret.env").write_text("KEY=1")
    push_to_hub(tmp_path / "a", NAME)
    assert {name: hub.files(NAME)[name] for name in extra} == extra
    assert "secret.env" not in hub.files(NAME)
    assert torch.equal(from_pretrained(NAME).W_enc, crosscoder.W_enc)
