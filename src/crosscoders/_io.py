"""Crash-safe writing: temporary name in the same folder, fsync, rename."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FORMAT_NAME = "crosscoders"

_HASH_CHUNK_BYTES = 1 << 20


def atomic_write(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file so that its final name holds either the old content or all of the new.

    Args:
        path: Final name; its folder must exist.
        write: Called once with a temporary path in the same folder; creates that file.

    Raises:
        OSError: Whatever `write`, fsync or rename raises; the temporary file is removed first.
    """
    path = Path(path)
    temporary = _temporary_sibling(path)
    try:
        write(temporary)
        _fsync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync(path.parent)


def atomic_write_json(path: Path, obj: Any) -> None:
    """Write `obj` as indented JSON through `atomic_write`; NaN and infinity are refused.

    Args:
        path: Final name.
        obj: Anything `json.dumps` accepts.

    Raises:
        ValueError: `obj` holds NaN or infinity, which JSON cannot express.
    """
    text = json.dumps(obj, indent=2, allow_nan=False) + "\n"
    atomic_write(path, lambda temporary: _write_text(temporary, text))


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def atomic_directory(path: Path, *, marker: str = "config.json") -> Iterator[Path]:
    """Fill a folder under a temporary name and rename it into place when the block ends without an error.

    An existing folder is replaced only if this library wrote it: it is empty, or its `marker` file is JSON
    with `"format": "crosscoders"`. The old folder is moved aside before the new one is renamed, and moved
    back if that fails.

    Args:
        path: Final name of the folder; missing parents are created.
        marker: File inside an existing folder that proves who wrote it.

    Yields:
        The temporary folder to fill.

    Raises:
        FileExistsError: `path` holds something that this library did not write.
        OSError: Writing failed; the temporary folder is gone and the old folder is untouched.
    """
    path = Path(path)
    _check_replaceable(path, marker=marker)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_sibling(path)
    try:
        temporary.mkdir()
        yield temporary
        _fsync_tree(temporary)
        _check_replaceable(path, marker=marker)
        _swap_into_place(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _fsync(path.parent)


def _temporary_sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_tree(folder: Path) -> None:
    for child in sorted(folder.rglob("*")):
        _fsync(child)
    _fsync(folder)


def _check_replaceable(path: Path, *, marker: str) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not path.is_dir() or not _is_ours(path / marker):
        raise FileExistsError(
            f"atomic_directory: {path} exists and was not written by this library (no {marker} with "
            f'"format": "{FORMAT_NAME}"); choose another path or remove it yourself.'
        )


def _is_ours(marker: Path) -> bool:
    try:
        content = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # An artifact damaged in its marker is not proof that we wrote it, so it is kept.
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT_NAME


def _swap_into_place(temporary: Path, path: Path) -> None:
    if not path.exists():
        os.rename(temporary, path)
        return
    aside = _temporary_sibling(path)
    os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except BaseException:
        os.rename(aside, path)
        raise
    shutil.rmtree(aside)
