"""Files appear under their final name complete or not at all."""

import errno
import json
from pathlib import Path

import pytest

from crosscoders._io import atomic_directory, atomic_write, atomic_write_json, sha256_file


def disk_full(path: Path) -> None:
    path.write_text("half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    atomic_write(target, lambda path: path.write_text("old"))
    with pytest.raises(OSError, match="No space"):
        atomic_write(target, disk_full)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_first_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        atomic_write(tmp_path / "file.txt", disk_full)
    assert list(tmp_path.iterdir()) == []


def test_json_refuses_numbers_that_are_not_finite(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        atomic_write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_somebody_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text('{"format": "something else"}')
    with (
        pytest.raises(FileExistsError, match="not written by this library"),
        atomic_directory(tmp_path / "mine"),
    ):
        raise AssertionError("the block must not run")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with atomic_directory(target) as folder:
        (folder / "config.json").write_text(json.dumps({"format": "crosscoders", "n": 1}))
    with pytest.raises(OSError, match="No space"), atomic_directory(target) as folder:
        disk_full(folder / "config.json")
    assert json.loads((target / "config.json").read_text())["n"] == 1
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_of_ours_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for n in (1, 2):
        with atomic_directory(target) as folder:
            (folder / "config.json").write_text(json.dumps({"format": "crosscoders", "n": n}))
            (folder / f"only-{n}").write_text("x")
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "only-2"]
    assert list(tmp_path.iterdir()) == [target]


def test_sha256_of_a_known_text(tmp_path: Path) -> None:
    (tmp_path / "abc").write_text("abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "abc") == expected
