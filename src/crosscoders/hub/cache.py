"""The cache that `huggingface_hub` keeps: `<cache>/models--owner--name/` with refs, snapshots and blobs."""

import contextlib
from pathlib import Path

from crosscoders._io import atomic_write_text, is_member_name, parse_json
from crosscoders.artifact import CONFIG_NAME, read_header
from crosscoders.hub.names import Place, is_commit

CONFIG_BYTES = 16 << 20
WEIGHTS_SUFFIX = ".safetensors"
_CONFIG_SUFFIXES = (".json", ".yaml", ".yml")
_NATIVE_KEYS = {"crosscoder", "config_sha256"}


def repo_folder(cache_dir: Path | str | None, repo_id: str) -> Path:
    """Where the cache keeps a repository."""
    from huggingface_hub import constants

    root = Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir)
    return root / ("models--" + repo_id.replace("/", "--"))


def snapshot_folder(repo: Path, place: Place, *, commit: str) -> Path:
    """Where the cache keeps the files of a place at a commit."""
    return repo / "snapshots" / commit / place.subfolder


def commit_of(folder: Path) -> str:
    """The commit whose snapshot this folder is, or lies in."""
    return next(part.name for part in (folder, *folder.parents) if part.parent.name == "snapshots")


def remember_revision(repo: Path, revision: str, *, commit: str) -> None:
    """Note which commit a branch or tag was, for the time without a network.

    Of "a" and "a/b", which a repository cannot have at once, the cache has room for the first alone.
    """
    if known_commit(repo, revision) == commit:
        return
    path = repo / "refs" / revision
    with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, commit)


def known_commit(repo: Path, revision: str) -> str | None:
    """The commit that a revision was when it was last pulled, or None."""
    if is_commit(revision):
        return revision
    path = repo / "refs" / revision
    commit = path.read_text(encoding="ascii").strip() if path.is_file() else ""
    return commit if is_commit(commit) else None


def is_complete(folder: Path, *, or_foreign: bool) -> bool:
    """Whether a folder holds all that a pull brings.

    Args:
        folder: Folder of a snapshot.
        or_foreign: Of another library's format only the weights, which come last, show it; take that.

    Raises:
        CheckpointError: It holds a `config.json` of ours that is damaged.
    """
    if is_native(folder):
        return all((folder / name).is_file() for name in read_header(folder)["files"])
    return or_foreign and folder.is_dir() and any(path.suffix == WEIGHTS_SUFFIX for path in folder.iterdir())


def is_native(folder: Path) -> bool:
    """Whether the folder's `config.json` is one of this library, damaged ones included.

    Raises:
        CheckpointError: It is not JSON.
    """
    path = folder / CONFIG_NAME
    if not path.is_file() or path.stat().st_size > CONFIG_BYTES:
        return False
    content = parse_json(path, path.read_bytes())
    return isinstance(content, dict) and (
        content.get("format") == "crosscoders" or bool(_NATIVE_KEYS & set(content))
    )


def foreign_files(names: list[str]) -> list[str]:
    """Which files of a folder a reader of another library's format may want, weights last."""
    plain = sorted(name for name in names if "/" not in name and is_member_name(name))
    configs = [name for name in plain if name.endswith(_CONFIG_SUFFIXES)]
    return configs + [name for name in plain if name.endswith(WEIGHTS_SUFFIX)]
