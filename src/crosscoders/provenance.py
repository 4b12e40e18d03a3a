"""Where a result comes from: versions, machine, config, data; and a manifest of what was written."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from crosscoders._io import atomic_write_json, is_temporary, sha256_file
from crosscoders._typing import typed
from crosscoders._version import __version__

_PACKAGES = (
    "torch",
    "transformers",
    "transformer-lens",
    "numpy",
    "safetensors",
    "jaxtyping",
    "beartype",
    "triton",
)


@typed
def data_fingerprint(tokens: Int[Tensor, "batch pos"]) -> str:
    """Hex SHA-256 of a tensor's shape and token ids, the same for any integer dtype and device.

    Args:
        tokens: Token ids.
    """
    digest = hashlib.sha256(str(tuple(tokens.shape)).encode())
    digest.update(tokens.to(torch.int64).contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


@typed
def weights_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 of named tensors, such as a state dict: names, types, shapes and bits; on any device.

    Args:
        tensors: Tensors by name, in any order.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@typed
def run_record(*, config: Mapping[str, Any], seed: int, data: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `run.json`.

    Args:
        config: The full configuration, JSON-ready.
        seed: The seed that everything random derives from.
        data: Fingerprints and sizes of the data.

    Returns:
        JSON-ready: format, versions, the commit of a checkout (None for an installed package), machine, seed,
        data and config.
    """
    return {
        "format": "crosscoders-run",
        "format_version": 1,
        "library_version": __version__,
        "commit": _commit(),
        "versions": {name: version for name in _PACKAGES if (version := _version_of(name))},
        "python": platform.python_version(),
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cpus": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "seed": seed,
        "data": dict(data),
        "config": dict(config),
    }


def _commit() -> str | None:
    """Commit of the checkout that holds this package, with "+changes" where tracked files differ from it."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or not (root / "src").is_dir():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):  # no git here, or a checkout of somebody else's
        return None


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True, timeout=10
    ).stdout.strip()


def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@typed
def write_manifest(folder: Path) -> None:
    """Write `manifest.json`: SHA-256 and size of every other file below a folder, by relative path.

    What an interrupted write of ours left under a temporary name is no part of the folder.

    Args:
        folder: A folder whose files are complete.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.name != "manifest.json"
        and not any(is_temporary(part) for part in path.relative_to(folder).parts)
    )
    entries = {
        path.relative_to(folder).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in files
    }
    atomic_write_json(
        folder / "manifest.json", {"format": "crosscoders-manifest", "format_version": 1, "files": entries}
    )
