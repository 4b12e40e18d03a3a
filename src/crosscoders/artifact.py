"""The native format on disk: `config.json` and `model.safetensors`, every byte accounted for.

Works on plain dicts and tensors, so that `Crosscoder` can use it. The format is public: version 1 holds the
keys "format", "format_version", "library_version", "crosscoder", "training_summary", "files" and
"config_sha256", the last being the SHA-256 of the canonical JSON of all others.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from crosscoders._io import FORMAT_NAME, atomic_directory, sha256_file
from crosscoders._typing import typed
from crosscoders._version import __version__
from crosscoders.errors import CheckpointError

FORMAT_VERSION = 1

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_KEYS = (
    "format",
    "format_version",
    "library_version",
    "crosscoder",
    "training_summary",
    "files",
    "config_sha256",
)
_ADVICE = "The folder is damaged or was edited; copy it again from its source or write it anew."


@typed
def write_artifact(
    path: Path | str,
    *,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    training_summary: Mapping[str, Any] | None = None,
    extra_files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a folder under a temporary name and rename it into place.

    Args:
        path: Final name; an existing folder is replaced only if this library wrote it.
        config: JSON-ready description of the crosscoder.
        tensors: Weights and buffers by state-dict key.
        training_summary: JSON-ready facts about the training run, if any.
        extra_files: Further files by name, covered by checksums as well.

    Raises:
        FileExistsError: `path` holds something that this library did not write.
        ValueError: An extra file's name is taken or is not a plain file name, or a number is not finite.
        OSError: Writing failed; nothing stands under `path` that was not there before.
    """
    extra = dict(extra_files or {})
    for name in extra:
        if name in (_CONFIG, _WEIGHTS) or Path(name).name != name:
            raise ValueError(f"write_artifact: {name!r} cannot be an extra file; use a plain, free file name.")
    with atomic_directory(Path(path)) as folder:
        contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(contiguous, folder / _WEIGHTS)
        for name, content in extra.items():
            (folder / name).write_bytes(content)
        content = {
            "format": FORMAT_NAME,
            "format_version": FORMAT_VERSION,
            "library_version": __version__,
            "crosscoder": dict(config),
            "training_summary": None if training_summary is None else dict(training_summary),
            "files": {name: _describe(folder / name) for name in (_WEIGHTS, *extra)},
        }
        content["config_sha256"] = _digest(content)
        (folder / _CONFIG).write_bytes(_encode(content))


@typed
def read_artifact(path: Path | str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a folder that `write_artifact` wrote, refusing anything else.

    Args:
        path: The folder.

    Returns:
        The whole content of `config.json`, and the tensors by state-dict key.

    Raises:
        CheckpointError: A file is missing, truncated or changed in any byte, a key is unknown or missing, or the
            format version is another one.
    """
    folder = Path(path)
    content = _read_config(folder / _CONFIG)
    for name, expected in content["files"].items():
        _check_file(folder / name, expected)
    try:
        return content, load_file(folder / _WEIGHTS)
    except (SafetensorError, OSError) as err:
        raise CheckpointError(f"{folder / _WEIGHTS}: not readable as safetensors ({err}). {_ADVICE}") from err


@typed
def check_tensors(
    path: Path | str, *, expected: Mapping[str, Tensor], got: Mapping[str, Tensor]
) -> None:
    """Check that stored tensors have the names, shapes and a floating dtype that a module expects.

    Args:
        path: Where they came from, for the message.
        expected: The module's state dict.
        got: The stored tensors.

    Raises:
        CheckpointError: Names or shapes differ.
    """
    if set(expected) != set(got):
        raise CheckpointError(
            f"{path}: missing tensors {sorted(set(expected) - set(got))}, unknown tensors "
            f"{sorted(set(got) - set(expected))}; the config describes another crosscoder. {_ADVICE}"
        )
    for key, tensor in expected.items():
        if tensor.shape != got[key].shape or not torch.is_floating_point(got[key]):
            raise CheckpointError(
                f"{path}: tensor {key!r} should have shape {tuple(tensor.shape)} and a floating dtype, got "
                f"{tuple(got[key].shape)} and {got[key].dtype}. {_ADVICE}"
            )


def _describe(file: Path) -> dict[str, Any]:
    return {"sha256": sha256_file(file), "bytes": file.stat().st_size}


def _encode(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode("ascii")


def _digest(content: Mapping[str, Any]) -> str:
    covered = {key: value for key, value in content.items() if key != "config_sha256"}
    canonical = json.dumps(covered, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; expected a folder written by Crosscoder.save_pretrained.")
    raw = file.read_bytes()
    try:
        content = json.loads(raw)
    except ValueError as err:
        raise CheckpointError(f"{file}: not valid JSON ({err}). {_ADVICE}") from err
    if not isinstance(content, dict) or content.get("format") != FORMAT_NAME:
        raise CheckpointError(f'{file}: expected "format": "{FORMAT_NAME}"; this is another kind of file.')
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{file}: format_version is {content.get('format_version')!r}, this library "
            f"({__version__}) reads {FORMAT_VERSION}; install the version that wrote it, "
            f"{content.get('library_version')!r}."
        )
    if set(content) != set(_KEYS):
        raise CheckpointError(
            f"{file}: unknown keys {sorted(set(content) - set(_KEYS))}, missing keys "
            f"{sorted(set(_KEYS) - set(content))}; the keys are {list(_KEYS)}. {_ADVICE}"
        )
    _check_unchanged(file, raw=raw, content=content)
    return content


def _check_unchanged(file: Path, *, raw: bytes, content: dict[str, Any]) -> None:
    try:
        digest, encoded = _digest(content), _encode(content)
    except ValueError as err:
        raise CheckpointError(f"{file}: holds a number that is not finite. {_ADVICE}") from err
    if content["config_sha256"] != digest:
        raise CheckpointError(
            f"{file}: its SHA-256 should be {content['config_sha256']}, got {digest}. {_ADVICE}"
        )
    # The digest covers the content; spacing and escapes are covered by writing it again.
    if encoded != raw:
        raise CheckpointError(f"{file}: its bytes differ from what the library writes for this content. {_ADVICE}")


def _check_file(file: Path, expected: Mapping[str, Any]) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file}: listed in {_CONFIG} but missing. {_ADVICE}")
    n_bytes = file.stat().st_size
    if n_bytes != expected["bytes"]:
        raise CheckpointError(f"{file}: expected {expected['bytes']} bytes, got {n_bytes}. {_ADVICE}")
    digest = sha256_file(file)
    if digest != expected["sha256"]:
        raise CheckpointError(f"{file}: expected SHA-256 {expected['sha256']}, got {digest}. {_ADVICE}")
