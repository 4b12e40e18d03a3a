"""Doctor: disk, memory, shared memory, and where models come from."""

import fcntl
import os
import re
import secrets
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from crosscoders._io import atomic_write
from crosscoders._typing import typed
from crosscoders.pipeline.installation.checks import Check
from crosscoders.pipeline.sizes import shown_bytes

_WRITTEN = 1 << 24  # bytes of the write test
_LITTLE_DISK = 10_000_000_000  # bytes; a store of 1M tokens of two models of width 2048 is 8 GB
_NO_DISK = 500_000_000
_LITTLE_MEMORY = 4_000_000_000
_LITTLE_SHARED_MEMORY = 1_000_000_000
_MEMINFO = Path("/proc/meminfo")
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@typed
def check_disk(folder: Path, *, free_bytes: int | None = None) -> list[Check]:
    """Free space where runs will be written, and whether writing, locking and mapping a file work there.

    Args:
        folder: The folder; if it does not exist yet, its nearest parent that does is looked at.
        free_bytes: Free space, bytes; None asks the system.
    """
    at = _nearest(folder.resolve())
    if not at.is_dir():
        found = f"{folder} cannot be made: {at} is no folder"
        return [Check(name="disk", level="fault", found=found, advice="choose another folder")]
    free = shutil.disk_usage(at).free if free_bytes is None else free_bytes
    found = f"{shown_bytes(free)} free at {at}"
    level = "fault" if free < _NO_DISK else "warning" if free < _LITTLE_DISK else "ok"
    advice = "" if level == "ok" else "free some, or choose another folder; `crosscoders plan` tells the need"
    space = Check(name="disk", level=level, found=found, advice=advice)
    return [space] if level == "fault" else [space, _check_write(at)]


def _check_write(folder: Path) -> Check:
    path = folder / f".crosscoders-doctor-{secrets.token_hex(4)}"
    content = os.urandom(1 << 16) * (_WRITTEN >> 16)
    try:
        began = time.perf_counter()
        atomic_write(path, lambda temporary: temporary.write_bytes(content))
        seconds = time.perf_counter() - began
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if np.memmap(path, mode="r").tobytes() != content:
            return Check(name="writing", level="fault", found=f"{folder} gave back other bytes than written")
    except OSError as err:
        advice = "choose a folder on a disk of this machine that you may write to"
        return Check(name="writing", level="fault", found=f"{folder}: {err}", advice=advice)
    finally:
        path.unlink(missing_ok=True)
    speed = shown_bytes(round(_WRITTEN / seconds))
    return Check(name="writing", level="ok", found=f"{speed}/s with fsync; locks and memory maps work")


@typed
def check_memory() -> list[Check]:
    """Memory that is free, under whatever limit this process has, and the shared memory of /dev/shm."""
    checks = []
    available, total = available_memory()
    if available is not None:
        found = f"{shown_bytes(available)} available of {shown_bytes(total or available)}"
        is_little = available < _LITTLE_MEMORY
        advice = "lower data.buffer_bytes, or end what else runs; `crosscoders plan` tells the need"
        level = "warning" if is_little else "ok"
        checks.append(Check(name="memory", level=level, found=found, advice=advice if is_little else ""))
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        is_little = free < _LITTLE_SHARED_MEMORY
        advice = "give the container more (docker run --shm-size=8g), or set system.overlap to another way"
        checks.append(
            Check(
                name="shared memory",
                level="warning" if is_little else "ok",
                found=f"{shown_bytes(free)} free in /dev/shm",
                advice=advice if is_little else "",
            )
        )
    return checks


def available_memory() -> tuple[int | None, int | None]:
    """Bytes available and in all, under the container's limit; None where the system does not tell."""
    try:
        text = _MEMINFO.read_text()
    except OSError:
        return None, None
    numbers = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    available, total = numbers.get("MemAvailable"), numbers.get("MemTotal")
    for path in _CGROUP_LIMITS:
        try:
            limit = int(path.read_text())
        except (OSError, ValueError):  # no limit reads "max"
            continue
        total = limit if total is None else min(limit, total)
        available = limit if available is None else min(limit, available)
    return available, total


@typed
def check_hub() -> list[Check]:
    """Where models of the Hub are kept, whether that can be written, and whether the Hub may be asked."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    is_offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")
    how = "offline (HF_HUB_OFFLINE): only what is in the cache loads" if is_offline else "online"
    n_models = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    found = f"{how}; {n_models} models in {cache}"
    try:
        tempfile.TemporaryFile(dir=_nearest(cache)).close()
    except OSError as err:
        advice = "set HF_HOME to a folder that you may write to"
        return [Check(name="Hub", level="warning", found=f"{found}; not writable ({err})", advice=advice)]
    return [Check(name="Hub", level="ok", found=found)]


def _nearest(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    return next(at for at in (path, *path.parents) if at.exists())
