"""A name that metadata gives never leads out of its folder, but for the links that the Hub's cache makes."""

import os
from pathlib import Path

import pytest

from crosscoders._io import member_path
from crosscoders.errors import CheckpointError

DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "name", ["model.safetensors", "a/b.txt", "..a", "a..b", "...", " x", "na\u00efve.txt"]
)
def test_names_inside_are_joined(tmp_path: Path, name: str) -> None:
    assert member_path(tmp_path, name) == tmp_path / name


OUTSIDE = ["..", "../x", "a/../../x", "/etc/passwd", "//x", "", ".", "./x", "a//b", "a/", "a/./b"]
OUTSIDE += ["..\\x", "a\\b", "C:x", "C:\\x", "x\0", "a\nb", "\ud800", "\u202ex", "\x1b[2J"]
OUTSIDE += ["a" * 256, "\u00e4" * 128, "a/" * 600 + "a"]


@pytest.mark.parametrize("name", OUTSIDE, ids=lambda name: ascii(name)[:20])
def test_names_that_lead_out_or_deceive_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="not the name of a file inside"):
        member_path(tmp_path, name)


@pytest.mark.parametrize("target", ["../secret", "{root}/secret", "../other/../secret", "hop"])
def test_links_out_are_refused(tmp_path: Path, target: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    os.symlink("../secret", folder / "hop")
    os.symlink(target.format(root=tmp_path), folder / "link")
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        member_path(folder, "link")


def test_a_linked_sub_folder_leads_out_as_well(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "folder").mkdir()
    os.symlink("../other", tmp_path / "folder" / "sub")
    with pytest.raises(CheckpointError, match="leads out"):
        member_path(tmp_path / "folder", "sub/not-there-yet")


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    os.symlink("loop", tmp_path / "loop")
    with pytest.raises(CheckpointError, match="leads nowhere"):
        member_path(tmp_path, "loop")


def test_links_inside_and_a_folder_that_is_a_link_are_fine(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("x")
    os.symlink("file", tmp_path / "folder" / "link")
    os.symlink("folder", tmp_path / "alias")
    for name in ("file", "link"):
        assert member_path(tmp_path / "alias", name).read_text() == "x"


def cache(root: Path) -> tuple[Path, Path]:
    """A repository in a Hub cache: its folder, and its one snapshot."""
    repo = root / "models--owner--name"
    snapshot = repo / "snapshots" / ("c" * 40)
    (snapshot / "sub").mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "blobs" / DIGEST).write_text("blob")
    return repo, snapshot


def test_links_from_a_snapshot_to_a_blob_of_its_repository_are_fine(tmp_path: Path) -> None:
    _, snapshot = cache(tmp_path)
    os.symlink(f"../../blobs/{DIGEST}", snapshot / "file")
    os.symlink(f"../../../blobs/{DIGEST}", snapshot / "sub" / "file")
    assert member_path(snapshot, "file").read_text() == "blob"
    assert member_path(snapshot, "sub/file").read_text() == "blob"
    assert member_path(snapshot / "sub", "file").read_text() == "blob"


def test_a_blob_shared_between_repositories_is_fine(tmp_path: Path) -> None:
    repo, snapshot = cache(tmp_path)
    shared = tmp_path / "blobs" / DIGEST[:2] / DIGEST
    shared.parent.mkdir(parents=True)
    shared.write_text("shared")
    (repo / "blobs" / DIGEST).unlink()
    os.symlink(f"../../blobs/{DIGEST[:2]}/{DIGEST}", repo / "blobs" / DIGEST)
    os.symlink(f"../../blobs/{DIGEST}", snapshot / "file")
    assert member_path(snapshot, "file").read_text() == "shared"


OUT_OF_THE_CACHE = ["../../refs/main", "../../../models--a--b/blobs/x", "../../../secret", "../../blobs/a/b"]
OUT_OF_THE_CACHE += ["../../../blobs/ab/plain-name", "../../blobs/../refs/main", "../../blobs"]


@pytest.mark.parametrize("target", OUT_OF_THE_CACHE)
def test_other_links_out_of_a_snapshot_are_refused(tmp_path: Path, target: str) -> None:
    _, snapshot = cache(tmp_path)
    os.symlink(target, snapshot / "file")
    with pytest.raises(CheckpointError, match="leads out"):
        member_path(snapshot, "file")


def test_a_folder_that_only_looks_like_a_cache_gains_nothing(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "blobs" / "x").write_text("x")
    os.symlink("../blobs/x", tmp_path / "folder" / "file")
    with pytest.raises(CheckpointError, match="leads out"):
        member_path(tmp_path / "folder", "file")
