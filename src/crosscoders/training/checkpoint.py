"""Checkpoints of a training run: one folder per step, complete or absent, checked on reading."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from crosscoders._io import atomic_directory, check_file, file_entry, read_manifest, write_manifest
from crosscoders._typing import typed
from crosscoders.errors import CheckpointError

_MANIFEST = "checkpoint.json"
_STATE = "state.pt"
_KEYS = ("step", "files")
_KEPT = 2
_NAME = re.compile(r"step-(\d{9})")


@typed
def write_checkpoint(folder: Path, state: Mapping[str, Any], *, step: int) -> Path:
    """Write `folder/step-000000123`, then remove all but the two newest checkpoints up to this step.

    One process writes to a folder; unfinished folders that a killed run left behind are removed.

    Args:
        folder: Folder of the run's checkpoints.
        state: Tensors, numbers, strings, and lists and dicts of them.
        step: Steps done.

    Returns:
        The new checkpoint's path.

    Raises:
        OSError: Writing failed; no checkpoint of this step is visible.
    """
    path = folder / f"step-{step:09d}"
    with atomic_directory(path, marker=_MANIFEST) as temporary:
        torch.save(dict(state), temporary / _STATE)
        write_manifest(
            temporary / _MANIFEST, {"step": step, "files": {_STATE: file_entry(temporary / _STATE)}}
        )
    stale = [old for old in _checkpoints(folder) if old.name <= path.name][:-_KEPT]
    for unwanted in (*stale, *folder.glob(".step-*.tmp")):
        shutil.rmtree(unwanted)
    return path


@typed
def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint.

    Args:
        path: A checkpoint, or the folder of a run's checkpoints, of which the newest is taken.

    Returns:
        The state that was written.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    path = path if (path / _MANIFEST).is_file() else latest_checkpoint(path)
    manifest = read_manifest(path / _MANIFEST, keys=_KEYS)
    for name, entry in manifest["files"].items():
        check_file(path / name, entry)
    return torch.load(path / _STATE, map_location="cpu", weights_only=True)


@typed
def has_checkpoint(folder: Path) -> bool:
    """Whether the folder holds a checkpoint.

    Args:
        folder: Folder of a run's checkpoints; it need not exist.

    Returns:
        True if there is at least one.
    """
    return bool(_checkpoints(folder))


@typed
def latest_checkpoint(folder: Path) -> Path:
    """The checkpoint with the highest step.

    Args:
        folder: Folder of a run's checkpoints.

    Returns:
        Its path.

    Raises:
        CheckpointError: The folder holds none.
    """
    found = _checkpoints(folder)
    if not found:
        raise CheckpointError(
            f"{folder}: holds no checkpoint (step-*/{_MANIFEST}); was checkpoint_every_steps set?"
        )
    return found[-1]


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(child for child in folder.iterdir() if _NAME.fullmatch(child.name) and child.is_dir())
