"""Checkpoints of a training run: one folder per step, complete or absent, checked on reading.

One process writes its state as one file; ranks write theirs through `sharded`. Both kinds of
folder stand side by side in a run, bear the same names and carry the same manifest.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from crosscoders._io import (
    atomic_directory,
    check_file,
    check_listing,
    file_entry,
    member_path,
    read_manifest,
    write_manifest,
)
from crosscoders._typing import typed
from crosscoders.errors import CheckpointError

MANIFEST = "checkpoint.json"
SHARDED = "distributed"  # what a manifest says as "layout" where ranks wrote the checkpoint
_STATE = "state.pt"
_KEYS = ("step", "files")
_NAME = re.compile(r"step-(\d{9})")


@typed
def write_checkpoint(
    folder: Path, state: Mapping[str, Any], *, step: int, kept: int = 2, milestone_every_steps: int = 0
) -> Path:
    """Write `folder/step-000000123`, then remove checkpoints as `remove_stale` does.

    One process writes to a folder; unfinished folders that a killed run left behind are removed.

    Args:
        folder: Folder of the run's checkpoints.
        state: Tensors, numbers, strings, and lists and dicts of them.
        step: Steps done.
        kept: Newest checkpoints to keep.
        milestone_every_steps: Checkpoints at multiples of this many steps stay; 0 for none.

    Returns:
        The new checkpoint's path.

    Raises:
        OSError: Writing failed; no checkpoint of this step is visible.
    """
    path = checkpoint_path(folder, step=step)
    with atomic_directory(path, marker=MANIFEST) as temporary:
        torch.save(dict(state), temporary / _STATE)
        write_manifest(
            temporary / MANIFEST, {"step": step, "files": {_STATE: file_entry(temporary / _STATE)}}
        )
    remove_stale(path, kept=kept, milestone_every_steps=milestone_every_steps)
    return path


@typed
def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint that one process wrote.

    Args:
        path: A checkpoint, or the folder of a run's checkpoints, of which the newest is taken.

    Returns:
        The state that was written.

    Raises:
        CheckpointError: There is none, it is damaged, or ranks wrote it.
    """
    path = find_checkpoint(path)
    listing = read_listing(path)
    check_files(path, listing["files"])
    return load_state(path, listing, is_mapped=False)


@typed
def load_state(path: Path, listing: Mapping[str, Any], *, is_mapped: bool) -> dict[str, Any]:
    """Load the state of a checkpoint that one process wrote, once its files were checked.

    Args:
        path: A checkpoint.
        listing: What `read_listing` says about it.
        is_mapped: Leave the tensors on disk until they are read.

    Returns:
        The state that was written.

    Raises:
        CheckpointError: Ranks wrote it.
    """
    if _STATE not in listing["files"]:
        raise CheckpointError(
            f"{path}: expected {_STATE}, got {sorted(listing['files'])}; ranks wrote this checkpoint. "
            "Trainer.resume reads it."
        )
    return torch.load(path / _STATE, map_location="cpu", weights_only=True, mmap=is_mapped)


@typed
def read_listing(path: Path) -> dict[str, Any]:
    """Read the manifest of a checkpoint and nothing else.

    Args:
        path: A checkpoint.

    Returns:
        Its content: "step", "files" by name and, where ranks wrote it, "layout".

    Raises:
        CheckpointError: It is missing or damaged, or it lists files outside of the folder.
    """
    content = read_manifest(path / MANIFEST, keys=_KEYS, optional=("layout",))
    check_listing(path / MANIFEST, content["files"])
    return content


@typed
def check_files(path: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Check files of a checkpoint against their length and SHA-256.

    Args:
        path: A checkpoint.
        files: What `read_listing` says about them, or about some of them.

    Raises:
        CheckpointError: A file is missing or differs in any byte.
    """
    for name, entry in files.items():
        check_file(member_path(path, name), entry)


@typed
def checkpoint_path(folder: Path, *, step: int) -> Path:
    """Where the checkpoint of a step lies.

    Args:
        folder: Folder of a run's checkpoints.
        step: Steps done.

    Returns:
        Its path, whether it exists or not.
    """
    return folder / f"step-{step:09d}"


@typed
def remove_stale(path: Path, *, kept: int, milestone_every_steps: int) -> None:
    """Remove the checkpoints up to this one but for the newest and the milestones, and unfinished ones.

    Args:
        path: The checkpoint that was just written; later ones, which another branch of the run wrote, stay.
        kept: Newest checkpoints to keep, milestones among them.
        milestone_every_steps: Checkpoints at multiples of this many steps stay; 0 for none.
    """
    older = [old for old in _checkpoints(path.parent) if old.name <= path.name][:-kept]
    stale = [old for old in older if not _is_milestone(old, milestone_every_steps)]
    for unwanted in (*stale, *path.parent.glob(".step-*.tmp")):
        shutil.rmtree(unwanted)


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
def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path means.

    Args:
        path: A checkpoint, or the folder of a run's checkpoints, of which the newest is taken.

    Returns:
        Path of one checkpoint.

    Raises:
        CheckpointError: There is none.
    """
    return path if (path / MANIFEST).is_file() else latest_checkpoint(path)


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
            f"{folder}: holds no checkpoint (step-*/{MANIFEST}); was checkpoint_every_steps set?"
        )
    return found[-1]


def _is_milestone(path: Path, every_steps: int) -> bool:
    return every_steps > 0 and int(path.name.removeprefix("step-")) % every_steps == 0


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(child for child in folder.iterdir() if _NAME.fullmatch(child.name) and child.is_dir())
