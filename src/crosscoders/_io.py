"""Crash-safe writing (temporary name, fsync, rename) and manifests that cover every byte."""

import contextlib
import hashlib
import json
import os
import re
import reprlib
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from crosscoders._version import __version__
from crosscoders.errors import CheckpointError

FORMAT_NAME = "crosscoders"
FORMAT_VERSION = 1

_DIGEST_KEY = "config_sha256"
_HEADER = ("format", "format_version", "library_version")
_ADVICE = "It is damaged or was edited; copy it again from its source or write it anew."

_MANIFEST_BYTES = 16 << 20  # far above any manifest; keeps a huge file from being read as one
_NAME_CHARACTERS = 1024
_SCALARS = (str, int, float, bool, type(None))
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TEMPORARY = re.compile(r"\..+\.[0-9]+\.[0-9a-f]{8}\.tmp", re.DOTALL)


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that its final name holds either the old content or all of the new.

    Args:
        path: Final name; its folder must exist.
        write: Called once with a temporary path in the same folder; creates that file.

    Raises:
        OSError: Whatever `write`, fsync or rename raises; the temporary file is removed first.
    """
    path = Path(path)
    temporary = temporary_sibling(path)
    try:
        write(temporary)
        _fsync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """Write text as UTF-8 through `atomic_write`.

    Args:
        path: Final name.
        text: The whole content.
    """
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def atomic_write_json(path: Path, obj: Any) -> None:
    """Write `obj` as indented JSON through `atomic_write`; NaN and infinity are refused.

    Args:
        path: Final name.
        obj: Anything `json.dumps` accepts.

    Raises:
        ValueError: `obj` holds NaN or infinity, which JSON cannot express.
    """
    atomic_write_text(path, json.dumps(obj, indent=2, allow_nan=False) + "\n")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in chunks."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def member_path(folder: Path, name: str) -> Path:
    """The path of a file that a folder's own metadata names, refused where it would lead out of the folder.

    A symbolic link may leave the folder only as the Hub's cache has it: from `snapshots/<commit>/` to a file
    of `blobs/` of the same repository.

    Args:
        folder: The folder.
        name: File name as the metadata (a manifest, an index) gives it; "/" separates sub-folders.

    Raises:
        CheckpointError: The name is absolute, empty, holds "..", a backslash or a control character, or a
            link leads elsewhere.
    """
    if not is_member_name(name):
        raise CheckpointError(f"{folder}: {name!r} is not the name of a file inside this folder. {_ADVICE}")
    folder = Path(folder)
    path = folder.joinpath(*name.split("/"))
    try:
        home, target = folder.resolve(), path.resolve()
    except (OSError, RuntimeError) as err:  # a link that leads to itself
        raise CheckpointError(f"{path}: this link leads nowhere ({err}). {_ADVICE}") from err
    if target.is_relative_to(home) or _is_cache_blob(home, target):
        return path
    raise CheckpointError(f"{path}: this link leads out of its folder, to {target}. {_ADVICE}")


def is_member_name(name: str) -> bool:
    """Whether a name stays inside the folder that it starts from; "/" separates sub-folders."""
    is_plain = name.isprintable() and not {"\\", ":"} & set(name) and len(name) <= _NAME_CHARACTERS
    parts = name.split("/")
    return is_plain and not any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts)


def _is_cache_blob(home: Path, target: Path) -> bool:
    """Whether `target` is a blob of the Hub cache whose `snapshots` hold `home`.

    That is `<cache>/<repo>/blobs/<hash>` or, since huggingface_hub shares blobs between repositories,
    `<cache>/blobs/<two digits>/<hash>`.
    """
    snapshots = next(
        (parent.parent for parent in (home, *home.parents) if parent.parent.name == "snapshots"), None
    )
    if snapshots is None:
        return False
    repo = snapshots.parent
    is_shared = target.parent.parent == repo.parent / "blobs" and _SHA256.fullmatch(target.name) is not None
    return target.parent == repo / "blobs" or is_shared


def check_keys(where: str, data: Mapping[str, Any], *, known: Iterable[str], required: Iterable[str]) -> None:
    """Raise ValueError, listing the known keys, if `data` has an unknown key or lacks a required one."""
    known, required = sorted(known), set(required)
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: expected an object with the keys {known}, got {reprlib.repr(data)}.")
    unknown, missing = sorted(set(data) - set(known)), sorted(required - set(data))
    if unknown or missing:
        raise ValueError(f"{where}: unknown keys {unknown}, missing keys {missing}; the keys are {known}.")


def check_field_types(where: str, data: Mapping[str, Any], cls: type) -> None:
    """Raise ValueError unless the JSON values in `data` have the types that a dataclass declares.

    Only fields of plain types (str, int, float, bool, None and unions of them) are looked at. An int may
    stand for a float, a bool for nothing else.
    """
    for field in fields(cls):
        if field.name in data and not _fits(data[field.name], field.type):
            expected = getattr(field.type, "__name__", str(field.type))
            raise ValueError(
                f"{where}: {field.name} should be {expected}, got {reprlib.repr(data[field.name])}."
            )


def _fits(value: Any, hint: Any) -> bool:
    options = get_args(hint) or (hint,)
    if any(option not in _SCALARS for option in options) or type(value) in options:
        return True
    return float in options and type(value) is int and abs(value) < 2**53  # exact as a float


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
    check_replaceable(path, marker=marker)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(path)
    try:
        temporary.mkdir()
        yield temporary
        _fsync_tree(temporary)
        check_replaceable(path, marker=marker)
        _swap_into_place(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _fsync(path.parent)


def file_entry(path: Path) -> dict[str, Any]:
    """What a manifest says about a file: its SHA-256 and its length in bytes."""
    return {"sha256": sha256_file(path), "bytes": Path(path).stat().st_size}


def check_file(path: Path, entry: Mapping[str, Any]) -> None:
    """Check a file against its manifest entry.

    Raises:
        CheckpointError: The file is missing, has another length, or any byte differs.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: listed in the folder's manifest but missing or no file. {_ADVICE}")
    n_bytes = path.stat().st_size
    if n_bytes != entry["bytes"]:
        raise CheckpointError(f"{path}: expected {entry['bytes']} bytes, got {n_bytes}. {_ADVICE}")
    digest = sha256_file(path)
    if digest != entry["sha256"]:
        raise CheckpointError(f"{path}: expected SHA-256 {entry['sha256']}, got {digest}. {_ADVICE}")


def check_listing(where: Path, files: Any) -> dict[str, dict[str, Any]]:
    """Give back the "files" entry of a manifest if it is one: `file_entry` by name, every name inside.

    Args:
        where: The manifest, for the message and as the place that the names start from.
        files: What it says.

    Raises:
        CheckpointError: It is not of this form, or a name leads out of the folder.
    """
    if not isinstance(files, dict):
        raise CheckpointError(f'{where}: "files" should be an object, got {reprlib.repr(files)}. {_ADVICE}')
    for name, entry in files.items():
        member_path(where.parent, name)
        if not _is_file_entry(entry):
            raise CheckpointError(
                f'{where}: "files" should give {name!r} 64 hex digits as "sha256" and a count as "bytes", '
                f"got {reprlib.repr(entry)}. {_ADVICE}"
            )
    return files


def _is_file_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or set(entry) != {"sha256", "bytes"}:
        return False
    digest, n_bytes = entry["sha256"], entry["bytes"]
    is_digest = isinstance(digest, str) and _SHA256.fullmatch(digest) is not None
    return is_digest and type(n_bytes) is int and 0 <= n_bytes < 2**63


def write_manifest(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that states its format and carries the SHA-256 of its own content.

    Args:
        path: File inside a folder that `atomic_directory` is filling.
        content: JSON-ready entries besides the header.

    Raises:
        ValueError: `content` holds NaN or infinity.
    """
    header = dict(zip(_HEADER, (FORMAT_NAME, FORMAT_VERSION, __version__), strict=True))
    whole = {**header, **content}
    path.write_bytes(_encode({**whole, _DIGEST_KEY: _digest(whole)}))


def read_manifest(path: Path, *, keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read what `write_manifest` wrote, refusing anything else.

    Args:
        path: The file.
        keys: The entries that it must hold besides the header and its digest.
        optional: Entries that it may hold as well.

    Raises:
        CheckpointError: The file is missing, of another format or version, has unknown or missing keys, or
            differs in any byte from what was written.
    """
    raw = _manifest_bytes(path)
    content = parse_json(path, raw)
    _check_format(path, content=content)
    required = (*_HEADER, *keys, _DIGEST_KEY)
    try:
        check_keys(str(path), content, known=(*required, *optional), required=required)
    except ValueError as err:
        raise CheckpointError(f"{err} {_ADVICE}") from err
    _check_unchanged(path, raw=raw, content=content)
    return content


def parse_json(path: Path, raw: bytes) -> Any:
    """Parse the bytes of a JSON file.

    Raises:
        CheckpointError: They are not UTF-8, not JSON, or nested too deeply.
    """
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as err:
        raise CheckpointError(f"{path}: not valid JSON ({err}). {_ADVICE}") from err


def _manifest_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a folder that this library wrote.")
    n_bytes = path.stat().st_size
    if n_bytes > _MANIFEST_BYTES:
        raise CheckpointError(f"{path}: expected at most {_MANIFEST_BYTES} bytes, got {n_bytes}. {_ADVICE}")
    return path.read_bytes()


def _check_format(path: Path, *, content: Any) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT_NAME:
        raise CheckpointError(f'{path}: expected "format": "{FORMAT_NAME}"; this is another kind of file.')
    version, library = content.get("format_version"), content.get("library_version")
    if type(version) is not int or version != FORMAT_VERSION or not isinstance(library, str):
        raise CheckpointError(
            f"{path}: expected format_version {FORMAT_VERSION}, got {reprlib.repr(version)}; use the version "
            f"of this library that wrote it ({reprlib.repr(library)}; this is {__version__!r})."
        )


def _check_unchanged(path: Path, *, raw: bytes, content: dict[str, Any]) -> None:
    covered = {key: value for key, value in content.items() if key != _DIGEST_KEY}
    try:
        digest, encoded = _digest(covered), _encode(content)
    except (ValueError, RecursionError) as err:
        raise CheckpointError(f"{path}: cannot be written again as JSON ({err}). {_ADVICE}") from err
    if content[_DIGEST_KEY] != digest:
        stated = reprlib.repr(content[_DIGEST_KEY])
        raise CheckpointError(f"{path}: expected SHA-256 {stated}, got {digest}. {_ADVICE}")
    # The digest covers the content; spacing and escapes are covered by writing the content again.
    if encoded != raw:
        raise CheckpointError(f"{path}: its bytes are not those that this content is written with. {_ADVICE}")


def _encode(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode("ascii")


def _digest(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is one that this library was writing, or had put aside."""
    return _TEMPORARY.fullmatch(name) is not None


def temporary_sibling(path: Path) -> Path:
    """A new name beside `path` that `is_temporary` knows, so that what a kill leaves there can be removed."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


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


def check_replaceable(path: Path, *, marker: str) -> None:
    """Raise FileExistsError if `atomic_directory` would refuse to replace `path`."""
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
    aside = temporary_sibling(path)
    os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except BaseException:
        os.rename(aside, path)
        raise
    shutil.rmtree(aside)
