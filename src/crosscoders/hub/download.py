"""One file from the Hub into the cache: resumed where it stopped, checked, then given its final name."""

import contextlib
import functools
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from crosscoders._io import atomic_write, sha256_file
from crosscoders.errors import CheckpointError
from crosscoders.hub.faults import hub_errors, is_passing
from crosscoders.hub.names import Place

_STALLS = 4  # attempts in a row that bring no byte before giving up
_WAIT_SECONDS = 0.5  # doubled with each such attempt
_ETAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@final
@dataclass(frozen=True, kw_only=True)
class Repo:
    """A repository at one commit, and where the cache keeps it.

    Args:
        place: Repository and sub-folder; its revision is the commit.
        folder: The repository's folder in the cache.
        token: As `huggingface_hub` takes it.
    """

    place: Place
    folder: Path
    token: bool | str | None = None


@final
@dataclass(frozen=True, kw_only=True)
class _Remote:
    url: str
    etag: str
    n_bytes: int | None


def fetch(
    repo: Repo, name: str, *, entry: Mapping[str, Any] | None = None, max_bytes: int | None = None
) -> Path:
    """Bring one file of a place into the cache.

    `huggingface_hub` (2.4) throws a partial file away when a call ends, so the bytes come by a request of our
    own for the missing range, into `blobs/<etag>.incomplete`; names and links are those of its cache.

    Args:
        repo: Where from and where to.
        name: File inside the place.
        entry: Its length and SHA-256 if known beforehand.
        max_bytes: Refuse a longer file.

    Returns:
        The file in the snapshot.

    Raises:
        CheckpointError: It is longer than allowed or not what `entry` or its own hash says.
        OSError: As `hub_errors` and the file system say.
    """
    in_repo, where = repo.place.name_in_repo(name), f"{repo.place}/{name}"
    pointer = repo.folder / "snapshots" / repo.place.revision / in_repo
    if pointer.exists():
        return pointer
    with hub_errors(where):
        remote = _ask(repo, in_repo)
    _check_length(where, remote.n_bytes, entry=entry, max_bytes=max_bytes)
    blob = repo.folder / "blobs" / remote.etag
    with _lock(repo, remote.etag):
        if not blob.exists():
            blob.parent.mkdir(parents=True, exist_ok=True)
            limits = (remote.n_bytes, None if entry is None else entry["bytes"], max_bytes)
            limit = next((n_bytes for n_bytes in limits if n_bytes is not None), None)
            _bring(remote, blob, repo=repo, where=where, sha256=_expected(remote, entry), limit=limit)
        _link(blob, pointer)
    return pointer


def _ask(repo: Repo, in_repo: str) -> _Remote:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repo.place.repo_id, in_repo, revision=repo.place.revision)
    answer = get_hf_file_metadata(url, token=repo.token, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    if answer.commit_hash != repo.place.revision or _ETAG.fullmatch(answer.etag or "") is None:
        raise ConnectionError(
            f"{url}: the answer is not a Hub's (commit {answer.commit_hash!r}, ETag {answer.etag!r}); is "
            "HF_ENDPOINT right?"
        )
    return _Remote(url=url, etag=answer.etag or "", n_bytes=answer.size)


def _check_length(
    where: str, n_bytes: int | None, *, entry: Mapping[str, Any] | None, max_bytes: int | None
) -> None:
    expected = None if entry is None else entry["bytes"]
    if n_bytes is not None and expected is not None and n_bytes != expected:
        raise CheckpointError(f"{where}: config.json says {expected} bytes, the repository has {n_bytes}.")
    if n_bytes is not None and max_bytes is not None and n_bytes > max_bytes:
        raise CheckpointError(f"{where}: expected at most {max_bytes} bytes, the repository has {n_bytes}.")


def _bring(
    remote: _Remote, blob: Path, *, repo: Repo, where: str, sha256: str | None, limit: int | None
) -> None:
    partial = blob.with_name(blob.name + ".incomplete")
    with hub_errors(where):
        _download(remote, partial, repo=repo, limit=limit)
    got = sha256_file(partial)
    if sha256 is not None and got != sha256:
        partial.unlink()
        raise CheckpointError(
            f"{where}: expected SHA-256 {sha256}, downloaded {got}; the bytes changed on the way, or the "
            "repository's config.json belongs to other weights. Pull again."
        )
    atomic_write(blob, functools.partial(os.replace, partial))


def _download(remote: _Remote, partial: Path, *, repo: Repo, limit: int | None) -> None:
    """Append to `partial` until it is whole, trying again as long as attempts bring bytes."""
    if remote.n_bytes is None or _size(partial) > remote.n_bytes:
        partial.unlink(missing_ok=True)
    partial.touch()
    if remote.n_bytes is None:
        _stream(remote, partial, repo=repo, limit=limit)
        return
    stalls = 0
    while (have := _size(partial)) < remote.n_bytes:
        try:
            _stream(remote, partial, repo=repo, limit=limit)
            failure: Exception = ConnectionError(f"{remote.url}: ended after {_size(partial)} bytes.")
        except Exception as err:
            if not is_passing(err):
                raise
            failure = err
        stalls = 0 if _size(partial) > have else stalls + 1
        if stalls >= _STALLS:
            raise failure
        time.sleep(_WAIT_SECONDS * 2**stalls if stalls else 0)


def _stream(remote: _Remote, partial: Path, *, repo: Repo, limit: int | None) -> None:
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    have = _size(partial)
    headers = {**build_hf_headers(token=repo.token), "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream(
        "GET", remote.url, headers=headers, timeout=timeout, follow_redirects=True
    ) as answer:
        hf_raise_for_status(answer)
        with partial.open("ab" if answer.status_code == 206 else "wb") as file:
            for chunk in answer.iter_bytes():
                file.write(chunk)
                if limit is not None and file.tell() > limit:
                    raise CheckpointError(f"{remote.url}: sent more than the {limit} bytes expected.")


def _link(blob: Path, pointer: Path) -> None:
    """Give the blob its name in the snapshot, as a relative link or, where links cannot be made, a copy."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(blob, pointer.parent)
    try:
        os.symlink(target, pointer)
    except FileExistsError:
        return
    except OSError:
        atomic_write(pointer, lambda temporary: _copy(blob, temporary))


def _copy(blob: Path, pointer: Path) -> None:
    shutil.copyfile(blob, pointer)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _expected(remote: _Remote, entry: Mapping[str, Any] | None) -> str | None:
    """What the config says, else the ETag, which is the SHA-256 for files in the Hub's large-file storage."""
    if entry is not None:
        return entry["sha256"]
    return remote.etag if _SHA256.fullmatch(remote.etag) else None


@contextlib.contextmanager
def _lock(repo: Repo, etag: str) -> Iterator[None]:
    """The lock that `huggingface_hub` takes for the same blob."""
    from huggingface_hub.utils import WeakFileLock

    path = repo.folder.parent / ".locks" / repo.folder.name / f"{etag}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(path):
        yield
