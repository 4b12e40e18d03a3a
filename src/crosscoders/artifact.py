"""The native format on disk: `config.json` and `model.safetensors`, every byte accounted for.

Works on plain dicts and tensors, so that `Crosscoder` can use it. The format is public: version 1 holds the
keys "format", "format_version", "library_version", "crosscoder", "training_summary", "files" and
"config_sha256", the last being the SHA-256 of the canonical JSON of all others.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from crosscoders._io import atomic_directory, check_file, file_entry, read_manifest, write_manifest
from crosscoders._typing import typed
from crosscoders.errors import CheckpointError

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_KEYS = ("crosscoder", "training_summary", "files")


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
            raise ValueError(
                f"write_artifact: {name!r} cannot be an extra file; use a plain, free file name."
            )
    with atomic_directory(Path(path)) as folder:
        contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(contiguous, folder / _WEIGHTS)
        for name, content in extra.items():
            (folder / name).write_bytes(content)
        content = {
            "crosscoder": dict(config),
            "training_summary": None if training_summary is None else dict(training_summary),
            "files": {name: file_entry(folder / name) for name in (_WEIGHTS, *extra)},
        }
        write_manifest(folder / _CONFIG, content)


@typed
def read_artifact(path: Path | str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a folder that `write_artifact` wrote, refusing anything else.

    Args:
        path: The folder.

    Returns:
        The whole content of `config.json`, and the tensors by state-dict key.

    Raises:
        CheckpointError: A file is missing, truncated or changed in any byte, a key is unknown or missing, or
            the format version is another one.
    """
    folder = Path(path)
    content = read_manifest(folder / _CONFIG, keys=_KEYS)
    for name, entry in content["files"].items():
        check_file(folder / name, entry)
    try:
        return content, load_file(folder / _WEIGHTS)
    except (SafetensorError, OSError) as err:
        raise CheckpointError(f"{folder / _WEIGHTS}: not readable as safetensors ({err}).") from err


@typed
def check_tensors(path: Path | str, *, expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
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
            f"{sorted(set(got) - set(expected))}; the config describes another crosscoder."
        )
    for key, tensor in expected.items():
        if tensor.shape != got[key].shape or not torch.is_floating_point(got[key]):
            raise CheckpointError(
                f"{path}: tensor {key!r} should have shape {tuple(tensor.shape)} and a floating dtype, got "
                f"{tuple(got[key].shape)} and {got[key].dtype}."
            )
