"""`ShardEntry`: what the manifest beside a shard says of it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crosscoders._io import atomic_write, check_listing, read_manifest, write_manifest
from crosscoders.errors import CheckpointError

_KEYS = ("store_sha256", "index", "n_batches", "n_rows", "norm_sums", "tokens_sha256", "is_last", "files")


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """A complete shard.

    Args:
        store_sha256: The layout of its store.
        index: Which shard it is.
        n_batches: Its token batches.
        n_rows: Its rows.
        norm_sums: For each source the sum of the norms of its rows, in float64.
        tokens_sha256: SHA-256 of its token batches.
        is_last: Whether the token batches end with it.
        files: SHA-256 and bytes of its file, by name.
    """

    store_sha256: str
    index: int
    n_batches: int
    n_rows: int
    norm_sums: tuple[float, ...]
    tokens_sha256: str
    is_last: bool
    files: Mapping[str, Mapping[str, Any]]


def shard_name(index: int) -> str:
    """Name of a shard's file."""
    return f"shard-{index:05d}.safetensors"


def entry_name(index: int) -> str:
    """Name of the manifest beside a shard; without it the shard does not exist."""
    return f"shard-{index:05d}.json"


def write_entry(folder: Path, entry: ShardEntry) -> None:
    """Write the manifest of a shard, all or nothing.

    Args:
        folder: The store.
        entry: What it says.
    """
    content = {**asdict(entry), "norm_sums": list(entry.norm_sums)}
    atomic_write(folder / entry_name(entry.index), lambda path: write_manifest(path, content))


def read_entry(folder: Path, index: int, *, store_sha256: str) -> ShardEntry:
    """Read and check the manifest of a shard.

    Args:
        folder: The store.
        index: Which shard.
        store_sha256: The layout of the store.

    Returns:
        What it says.

    Raises:
        CheckpointError: It is missing, damaged, or of another shard or store.
    """
    path = folder / entry_name(index)
    content = read_manifest(path, keys=_KEYS)
    files = check_listing(path, content["files"])
    given = {key: content[key] for key in _KEYS}
    entry = ShardEntry(**{**given, "norm_sums": tuple(content["norm_sums"]), "files": files})
    expected = (store_sha256, index, [shard_name(index)])
    if (entry.store_sha256, entry.index, list(entry.files)) != expected:
        raise CheckpointError(
            f"{path}: belongs to another store or shard (shard {entry.index} of a store with SHA-256 "
            f"{entry.store_sha256}; expected {index} of {store_sha256})."
        )
    return entry
