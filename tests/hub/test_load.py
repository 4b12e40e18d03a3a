"""Reading by name: folder or repository, ours or another library's, nothing guessed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import crosscoders as cc
from crosscoders.errors import CheckpointError
from crosscoders.hub import from_pretrained
from tests.hub.stand_in import StandIn
from tests.hub.toys import SOURCES, files_of, rows, saved


def foreign(folder: Path) -> Path:
    """A crosscoder with the keys of the ckkissane family, whose files never hold their normalization."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (2, 6, 8), "b_enc": (8,), "W_dec": (8, 2, 6), "b_dec": (2, 6)}
    tensors = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    save_file(tensors, folder / "cc_weights.safetensors")
    (folder / "cfg.json").write_text('{"d_in": 6, "dict_size": 8, "l1_coeff": 2}')
    return folder


def test_a_folder_comes_back_in_eval_mode_and_without_an_origin(tmp_path: Path) -> None:
    crosscoder = saved(tmp_path / "mine")
    for name in (tmp_path / "mine", str(tmp_path / "mine")):
        again = from_pretrained(name)
        assert not again.training
        assert again.origin is None
        assert torch.equal(again.reconstruct(rows()), crosscoder.reconstruct(rows()))
    assert torch.equal(from_pretrained(tmp_path, subfolder="mine").W_enc, crosscoder.W_enc)
    assert from_pretrained(tmp_path / "mine", device="cpu").W_enc.device.type == "cpu"


@pytest.mark.parametrize("name", ["./runs/mine", "/no/such/folder", "runs", "a/b/c", "", "C:\\x"])
def test_what_is_neither_folder_nor_repository_says_what_to_pass(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"neither|not a folder.*save_pretrained"):
        from_pretrained(f"{name}-missing")


def test_a_path_is_never_looked_up_on_the_hub(hub: StandIn) -> None:
    with pytest.raises(CheckpointError, match="not a folder"):
        from_pretrained(Path("someone/cross"))
    assert hub.seen == []


def test_a_folder_is_preferred_to_a_repository(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "someone" / "cross", seed=4)
    monkeypatch.chdir(tmp_path)
    assert from_pretrained("someone/cross").origin is None
    assert hub.seen == []
    with pytest.raises(ValueError, match="has no revision"):
        from_pretrained("someone/cross", revision="main")


def test_scale_and_sources_of_an_artifact_are_not_to_be_given(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    for options in ({"scale": [1.0, 1.0]}, {"sources": SOURCES}):
        with pytest.raises(ValueError, match="carries its own sources and scales"):
            from_pretrained(tmp_path / "a", **options)


@pytest.mark.parametrize("subfolder", ["../a", "/a", "a/../../b", ".."])
def test_a_sub_folder_stays_inside(tmp_path: Path, subfolder: str) -> None:
    saved(tmp_path / "a")
    with pytest.raises(ValueError, match="sub-folder"):
        from_pretrained(tmp_path / "a", subfolder=subfolder)


def test_an_empty_folder_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"empty.*config\.json"):
        from_pretrained(tmp_path)


def test_a_folder_of_pickles_names_the_command_that_reads_them(tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_text("{}")
    torch.save({"W_enc": torch.zeros(2, 3, 4)}, tmp_path / "cc_weights.pt")
    with pytest.raises(CheckpointError, match="crosscoders convert"):
        from_pretrained(tmp_path)


def test_a_foreign_folder_needs_what_it_lacks(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "theirs")
    with pytest.raises((CheckpointError, ValueError), match="scale"):
        from_pretrained(folder)
    assert from_pretrained(folder, scale=[0.5, 2.0]).sources[1].scale == 2.0


def test_a_foreign_repository_is_pulled_and_read(hub: StandIn, tmp_path: Path) -> None:
    files = files_of(foreign(tmp_path / "theirs"), subfolder="layer_3")
    commit = hub.add("someone/theirs", {**files, "layer_3/pickle.pt": b"\x80", "huge.bin": b"x"})
    crosscoder = from_pretrained("someone/theirs", subfolder="layer_3", scale=[0.5, 2.0])
    assert crosscoder.origin == f"someone/theirs@{commit}:layer_3"
    assert not hub.lines("pickle|huge")
    again = from_pretrained("someone/theirs", subfolder="layer_3", scale=[0.5, 2.0], local_files_only=True)
    assert torch.equal(again.W_enc, crosscoder.W_enc)


def test_the_package_exports_it(tmp_path: Path) -> None:
    saved(tmp_path / "mine")
    assert isinstance(cc.from_pretrained(tmp_path / "mine"), cc.Crosscoder)
