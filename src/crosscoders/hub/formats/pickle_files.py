"""Tensors of a `.pt` file through torch's restricted unpickler, which builds tensors and runs nothing."""

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosscoders.errors import CheckpointError

# What a pickle that was cut or edited makes the unpickler raise.
_UNPICKLING = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    OSError,
    struct.error,
)


def read_pickle_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a state dict that `torch.save` wrote.

    Args:
        path: The file.

    Returns:
        The tensors by key, and what stands beside them (numbers, texts, dicts of these).

    Raises:
        CheckpointError: It is no such archive, holds compressed entries or entries longer than itself, holds
            anything but tensors and plain values, or a tensor larger than the file.
    """
    _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _UNPICKLING as err:
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        raise CheckpointError(
            f"{path}: refused: torch's restricted unpickler, which loads tensors and runs no code, cannot "
            f"read it ({reason[:200]}). If you trust its author, load it yourself and save its "
            "state dict anew."
        ) from err
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise CheckpointError(f"{path}: expected a dict of tensors by name, got {type(content).__name__}.")
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    for key, tensor in tensors.items():
        _check_tensor(path, key, tensor)
    return tensors, {key: value for key, value in content.items() if key not in tensors}


def _check_archive(path: Path) -> None:
    """A crafted archive may inflate to any size; torch.save stores its entries without compression."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as err:
        raise CheckpointError(
            f"{path}: expected an archive that torch.save wrote (torch 1.6 or later), got "
            "another kind of file "
            f"({err}); it may be truncated, or older: load it in torch and save it again."
        ) from err
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    total = sum(entry.file_size for entry in entries)
    if packed or total > size:
        raise CheckpointError(
            f"{path}: expected stored entries of at most {size} bytes in all, as torch.save writes them, got "
            f"{total} bytes and compressed entries {packed[:3]}."
        )


def _check_tensor(path: Path, key: str, tensor: Tensor) -> None:
    size = path.stat().st_size
    is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not is_plain:
        raise CheckpointError(f"{path}: {key!r} is no plain tensor ({tensor.layout}, {tensor.device}).")
    n_bytes = max(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
    if n_bytes > size:
        raise CheckpointError(f"{path}: {key!r} claims {n_bytes} bytes, but the file has {size}.")
