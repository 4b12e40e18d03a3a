"""The native format on disk: `config.json` and `model.safetensors`, every byte accounted for.

Works on plain dicts and tensors, so that `Crosscoder` can use it. The format is public: version 1 holds the
keys "format", "format_version", "library_version", "crosscoder", "training_summary", "files",
"config_sha256", the SHA-256 of the canonical JSON of all others, and, for a crosscoder with one threshold,
"threshold". The tensors are the truth: "threshold" is a copy for readers, refused where the two disagree.
Files that "files" does not list are never read.
"""

import contextlib
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

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

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
_KEYS = ("crosscoder", "training_summary", "files")
_THRESHOLD, _THRESHOLD_TENSOR = "threshold", "activation.threshold"
_DTYPES = ("F64", "F32", "F16", "BF16")


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
        if name in (CONFIG_NAME, WEIGHTS_NAME) or Path(name).name != name:
            raise ValueError(
                f"write_artifact: {name!r} cannot be an extra file; use a plain, free file name."
            )
    with atomic_directory(Path(path)) as folder:
        contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(contiguous, folder / WEIGHTS_NAME)
        for name, content in extra.items():
            (folder / name).write_bytes(content)
        content = {
            "crosscoder": dict(config),
            "training_summary": None if training_summary is None else dict(training_summary),
            "files": {name: file_entry(folder / name) for name in (WEIGHTS_NAME, *extra)},
            **_threshold_entry(tensors),
        }
        write_manifest(folder / CONFIG_NAME, content)


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
    content, stamp = read_header(path), _stamp(Path(path) / WEIGHTS_NAME)
    check_files(path, content)
    return content, read_tensors(path, content, stamp=stamp)


@typed
def read_header(path: Path | str) -> dict[str, Any]:
    """Read and check `config.json` alone; nothing else need be there yet.

    Args:
        path: The folder.

    Returns:
        Its whole content; "files" lists `model.safetensors`, and every name lies inside the folder.

    Raises:
        CheckpointError: It is missing, changed in any byte, or not of this form.
    """
    config = member_path(Path(path), CONFIG_NAME)
    content = read_manifest(config, keys=_KEYS, optional=(_THRESHOLD,))
    if WEIGHTS_NAME not in check_listing(config, content["files"]) or CONFIG_NAME in content["files"]:
        listed = sorted(content["files"])
        raise CheckpointError(
            f'{config}: "files" should list {WEIGHTS_NAME} and not {CONFIG_NAME}, got {listed}.'
        )
    for key, kinds in (("crosscoder", dict), ("training_summary", (dict, type(None)))):
        if not isinstance(content[key], kinds):
            raise CheckpointError(f'{config}: "{key}" should be an object, got {reprlib.repr(content[key])}.')
    return content


@typed
def check_files(path: Path | str, header: Mapping[str, Any]) -> None:
    """Check every listed file against its length and SHA-256.

    Args:
        path: The folder.
        header: What `read_header` gave.

    Raises:
        CheckpointError: A file is missing or differs in any byte.
    """
    for name, entry in header["files"].items():
        check_file(member_path(Path(path), name), entry)


@typed
def check_weights(
    path: Path | str, header: Mapping[str, Any], *, n_latents: int, width: int
) -> tuple[int, ...]:
    """Check all files as `check_files`, then shapes in the weights' own header.

    A config can claim any size; this asks the file before anything of that size is made.

    Args:
        path: The folder.
        header: What `read_header` gave.
        n_latents: Number of latents that the config states.
        width: Number of columns that it states.

    Returns:
        The state of the file that was checked, by which `read_tensors` knows that it reads the same.

    Raises:
        CheckpointError: A byte changed, the file is no safetensors file, a tensor is missing or of another
            shape, or the tensors are not all of one floating dtype.
    """
    weights = Path(path) / WEIGHTS_NAME
    stamp = _stamp(weights)
    check_files(path, header)
    n, w = n_latents, width
    shapes = {"W_enc": (n, w), "W_dec": (n, w), "b_enc": (n,), "b_dec": (w,), "selection_weight": (n,)}
    found, dtypes = _tensor_headers(weights)
    for key, shape in shapes.items():
        if found.get(key) != shape:
            raise CheckpointError(
                f"{weights}: tensor {key!r} should have shape {shape}, got "
                f"{found.get(key, 'no such tensor')}; the config describes another crosscoder."
            )
    if len(dtypes) > 1 or not dtypes <= set(_DTYPES):
        raise CheckpointError(f"{weights}: tensors should share one of {_DTYPES}, got {sorted(dtypes)}.")
    return stamp


@contextlib.contextmanager
def config_errors(path: Path | str) -> Iterator[None]:
    """Turn a ValueError or TypeError about a stored config into a CheckpointError that names its folder."""
    try:
        yield
    except CheckpointError:
        raise
    except (ValueError, TypeError) as err:
        cause = " ".join(str(err).split("\n---")[0].split())  # a type checker adds the call below a rule
        raise CheckpointError(f"{path}: {CONFIG_NAME} describes no crosscoder to build: {cause}") from err


@typed
def read_tensors(
    path: Path | str,
    header: Mapping[str, Any],
    *,
    expected: Mapping[str, Tensor] | None = None,
    stamp: tuple[int, ...] | None = None,
) -> dict[str, Tensor]:
    """Read the weights of a folder whose files were checked.

    Args:
        path: The folder.
        header: What `read_header` gave.
        expected: State dict of the module that they are for; None to take what is there.
        stamp: What `check_weights` gave; None if nobody may have changed the file since it was checked.

    Returns:
        Tensors by state-dict key.

    Raises:
        CheckpointError: Not readable as safetensors, the threshold differs from the copy in `config.json`,
            names, shapes or dtype are not the expected ones, or the file changed since it was checked.
    """
    weights = Path(path) / WEIGHTS_NAME
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as err:
        raise CheckpointError(f"{weights}: not readable as safetensors ({err}).") from err
    if stamp is not None and _stamp(weights) != stamp:
        raise CheckpointError(f"{weights}: was replaced or written to while it was read; read it again.")
    stored, copy = _threshold_entry(tensors), header.get(_THRESHOLD)
    if _THRESHOLD in header and stored.get(_THRESHOLD) != copy:
        raise CheckpointError(
            f"{path}: {CONFIG_NAME} says threshold {reprlib.repr(copy)}, but {WEIGHTS_NAME} holds "
            f"{stored.get(_THRESHOLD)}."
        )
    if expected is not None:
        check_tensors(path, expected=expected, got=tensors)
    return tensors


def _stamp(weights: Path) -> tuple[int, ...]:
    """What changes when a file is replaced or written to; () if there is none."""
    try:
        state = weights.stat()
    except OSError:
        return ()
    return (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def _tensor_headers(weights: Path) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """Shapes by name, and the dtypes that occur."""
    try:
        with safe_open(weights, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
            return shapes, {part.get_dtype() for part in slices.values()}
    except (SafetensorError, OSError) as err:
        raise CheckpointError(f"{weights}: not readable as safetensors ({err}).") from err


def _threshold_entry(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """The one threshold of a crosscoder that has one; thresholds per latent are left to the weights."""
    threshold = tensors.get(_THRESHOLD_TENSOR)
    if threshold is None or threshold.ndim > 0 or not bool(threshold.isfinite()):
        return {}
    return {_THRESHOLD: float(threshold)}


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
