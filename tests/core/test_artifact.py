"""The native format: what is read is what was written, or an error."""

import errno
import json
from pathlib import Path

import pytest
import torch

from crosscoders import artifact
from crosscoders._io import write_manifest
from crosscoders.activation_fns import ActivationFn, BatchTopK, ReLU
from crosscoders.artifact import read_artifact, write_artifact
from crosscoders.crosscoder import Crosscoder
from crosscoders.errors import CheckpointError
from tests.core.toy import ACTIVATION_FNS, kind_of, toy_crosscoder, toy_rows


def saved(path: Path, *, activation_fn: ActivationFn | None = None) -> Crosscoder:
    crosscoder = toy_crosscoder(activation_fn or BatchTopK(k=3)).train()
    crosscoder.encode(toy_rows())
    crosscoder.eval().save_pretrained(path, training_summary={"steps": 3})
    return crosscoder


@pytest.mark.parametrize("is_folded", [False, True])
@pytest.mark.parametrize("activation_fn", ACTIVATION_FNS, ids=kind_of)
def test_a_saved_crosscoder_comes_back_bit_for_bit(
    tmp_path: Path, activation_fn: ActivationFn, is_folded: bool
) -> None:
    crosscoder = saved(tmp_path / "a", activation_fn=activation_fn)
    if is_folded:
        crosscoder = crosscoder.double().fold()
        crosscoder.save_pretrained(tmp_path / "a")
    again = Crosscoder.from_pretrained(tmp_path / "a")
    assert again.config == crosscoder.config
    x = toy_rows(50).to(crosscoder.W_enc.dtype)
    assert torch.equal(again.reconstruct(x), crosscoder.reconstruct(x))
    assert torch.equal(again.selection_scale(), crosscoder.selection_scale())


def test_config_json_has_the_public_keys(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    content, tensors = read_artifact(tmp_path / "a")
    assert sorted(content) == [
        "config_sha256",
        "crosscoder",
        "files",
        "format",
        "format_version",
        "library_version",
        "threshold",
        "training_summary",
    ]
    assert content["training_summary"] == {"steps": 3}
    assert "activation.threshold" in tensors


def check_flips(folder: Path, *, positions_per_file: int | None) -> None:
    for file in sorted(folder.iterdir()):
        original = file.read_bytes()
        stride = 1 if positions_per_file is None else max(1, len(original) // positions_per_file)
        for position in range(0, len(original), stride):
            changed = bytearray(original)
            changed[position] ^= (0x01, 0x20, 0x2A)[position % 3]  # 0x2A makes a line feed of a space
            file.write_bytes(changed)
            with pytest.raises(CheckpointError):
                read_artifact(folder)
        file.write_bytes(original)
    read_artifact(folder)


def test_a_flipped_byte_raises(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    check_flips(tmp_path / "a", positions_per_file=200)


@pytest.mark.slow
def test_any_flipped_byte_raises(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    check_flips(tmp_path / "a", positions_per_file=None)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "notes.txt"])
def test_truncated_and_missing_files_raise_naming_the_file(tmp_path: Path, name: str) -> None:
    write_artifact(
        tmp_path / "a", config={}, tensors={"x": torch.ones(3)}, extra_files={"notes.txt": b"hello"}
    )
    file = tmp_path / "a" / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        read_artifact(tmp_path / "a")
    file.unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        read_artifact(tmp_path / "a")


def rewritten(folder: Path, **changes: object) -> None:
    """Change entries of config.json and make its own digest right again."""
    content = json.loads((folder / "config.json").read_text())
    del content["config_sha256"]
    write_manifest(folder / "config.json", {**content, **changes})


def test_another_format_version_or_format_raises(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    rewritten(tmp_path / "a", format_version=2)
    with pytest.raises(CheckpointError, match="expected format_version 1, got 2"):
        read_artifact(tmp_path / "a")
    rewritten(tmp_path / "a", format="other")
    with pytest.raises(CheckpointError, match="another kind of file"):
        read_artifact(tmp_path / "a")


def test_unknown_keys_raise_at_every_level(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())["crosscoder"]
    rewritten(tmp_path / "a", crosscoder={**config, "n_layers": 2})
    with pytest.raises(CheckpointError, match="n_layers"):
        Crosscoder.from_pretrained(tmp_path / "a")
    rewritten(tmp_path / "a", note="hi")
    with pytest.raises(CheckpointError, match="note"):
        read_artifact(tmp_path / "a")


def test_weights_of_another_shape_raise(tmp_path: Path) -> None:
    config = saved(tmp_path / "a").config.to_dict()
    rewritten(tmp_path / "a", crosscoder={**config, "n_latents": 31})
    with pytest.raises(CheckpointError, match=r"\(31, 12\).*\(32, 12\)"):
        Crosscoder.from_pretrained(tmp_path / "a")
    rewritten(tmp_path / "a", crosscoder={**config, "activation_fn": ReLU().to_dict()})
    with pytest.raises(CheckpointError, match=r"unknown tensors \['activation.threshold'\]"):
        Crosscoder.from_pretrained(tmp_path / "a")


def test_a_full_disk_leaves_the_old_artifact_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crosscoder = saved(tmp_path / "a")

    def disk_full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half of the wei")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifact, "save_file", disk_full)
    for name in ("a", "b"):
        with pytest.raises(OSError, match="No space"):
            toy_crosscoder(ReLU()).save_pretrained(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    x = toy_rows(5)
    assert torch.equal(Crosscoder.from_pretrained(tmp_path / "a").reconstruct(x), crosscoder.reconstruct(x))


def test_a_folder_of_somebody_else_is_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("one")
    with pytest.raises(FileExistsError, match="thesis"):
        saved(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "one"
