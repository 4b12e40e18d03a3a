"""A crosscoder's folder from the Hub: one commit, its config first, then exactly the files it needs."""

from pathlib import Path
from typing import Any

from crosscoders._typing import typed
from crosscoders.artifact import CONFIG_NAME, read_header
from crosscoders.errors import CheckpointError
from crosscoders.hub.cache import (
    CONFIG_BYTES,
    WEIGHTS_SUFFIX,
    foreign_files,
    is_complete,
    is_native,
    known_commit,
    remember_revision,
    repo_folder,
    snapshot_folder,
)
from crosscoders.hub.download import Repo, fetch
from crosscoders.hub.faults import hub_errors
from crosscoders.hub.names import Place, is_commit, place

_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")


@typed
def pull(
    repo_id: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    cache_dir: Path | str | None = None,
    local_files_only: bool = False,
    token: bool | str | None = None,
) -> Path:
    """Download a crosscoder into the Hub's cache and give its folder there; nothing of it is executed.

    The revision is resolved to a commit once, `config.json` comes first and is checked, and then exactly the
    files that it lists come, each checked against its SHA-256 before it gets its name. Of a repository in
    another library's format the folder's safetensors and config files come. A download that stops goes on
    where it was, in the same or in a later call. The result is `.../snapshots/<commit>/<subfolder>`.

    Args:
        repo_id: "owner/name".
        revision: Branch, tag or commit; "main" by default. If the cache holds an artifact at a full commit,
            the Hub is not asked.
        subfolder: Folder inside the repository, such as one of a sweep.
        cache_dir: Root of the cache; None for that of `huggingface_hub`.
        local_files_only: Take what was pulled before and ask nobody; HF_HUB_OFFLINE=1 does the same.
        token: As `huggingface_hub` takes it.

    Returns:
        The folder, read-only by convention: other revisions share its files.

    Raises:
        ValueError: `repo_id`, `revision` or `subfolder` cannot be one.
        CheckpointError: What is there is damaged, is no crosscoder, or comes as pickle files only.
        FileNotFoundError: No such repository, revision or sub-folder, or the cache lacks it when offline.
        PermissionError: The Hub refused: private or gated, or a wrong token.
        ConnectionError: The Hub or the connection failed; what had come is kept for the next try.
        OSError: The disk is full or may not be written.
    """
    wanted = place(repo_id, revision=revision, subfolder=subfolder)
    folder = repo_folder(cache_dir, repo_id)
    is_offline = local_files_only or _is_offline()
    if is_offline or is_commit(wanted.revision):
        commit = known_commit(folder, wanted.revision)
        found = None if commit is None else snapshot_folder(folder, wanted, commit=commit)
        if found is not None and is_complete(found, or_foreign=is_offline):
            return found
    if is_offline:
        raise FileNotFoundError(
            f"pull: {wanted} is not complete in the cache {folder} and the Hub may not be asked "
            "(local_files_only or HF_HUB_OFFLINE)."
        )
    return _pull_online(wanted, folder, token=token)


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _pull_online(wanted: Place, folder: Path, *, token: bool | str | None) -> Path:
    commit, names = list_files(wanted, token=token)
    pinned = Place(repo_id=wanted.repo_id, revision=commit, subfolder=wanted.subfolder)
    repo = Repo(place=pinned, folder=folder, token=token)
    prefix = wanted.name_in_repo("")
    inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    found = snapshot_folder(folder, wanted, commit=commit)
    if CONFIG_NAME in inside:
        fetch(repo, CONFIG_NAME, max_bytes=CONFIG_BYTES)
    for name, entry in _needed(found, inside, wanted).items():
        fetch(repo, name, entry=entry, max_bytes=None if name.endswith(WEIGHTS_SUFFIX) else CONFIG_BYTES)
    remember_revision(folder, wanted.revision, commit=commit)
    return found


def list_files(wanted: Place, *, token: bool | str | None) -> tuple[str, list[str]]:
    """The commit that a revision is now, and the names of all files of the repository at it.

    Raises:
        OSError: As `hub_errors` says.
    """
    from huggingface_hub import HfApi, constants

    with hub_errors(wanted):
        try:
            info = HfApi(token=token).model_info(
                wanted.repo_id, revision=wanted.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
            commit, names = str(info.sha), [str(sibling.rfilename) for sibling in info.siblings or []]
        except OSError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as err:
            raise ConnectionError(
                f"{wanted}: the answer is not a Hub's ({err}); is HF_ENDPOINT right?"
            ) from err
    if not is_commit(commit):
        raise ConnectionError(f"{wanted}: the answer names no commit ({commit!r}); is HF_ENDPOINT right?")
    return commit, names


def _needed(found: Path, inside: list[str], wanted: Place) -> dict[str, dict[str, Any] | None]:
    """Which files to bring, each with what is known of it beforehand."""
    if is_native(found):
        listed = read_header(found)["files"]
        missing = sorted(set(listed) - set(inside))
        if missing:
            raise CheckpointError(f"{wanted}: config.json lists {missing}, which the repository lacks.")
        return listed
    if not any("/" not in name and name.endswith(WEIGHTS_SUFFIX) for name in inside):
        _refuse(inside, wanted)
    return dict.fromkeys(foreign_files(inside))


def _refuse(inside: list[str], wanted: Place) -> None:
    here = sorted(name for name in inside if "/" not in name)
    if pickles := [name for name in here if name.endswith(_PICKLES)]:
        raise CheckpointError(
            f"{wanted}: holds no safetensors file, only {pickles}, which can execute code when read. If you "
            "trust them, download them and run `crosscoders convert`, which reads them restrictedly."
        )
    folders = sorted(
        {name.rpartition("/")[0] for name in inside if name.endswith(("/" + CONFIG_NAME, "cfg.json"))}
    )
    hint = f" Sub-folders that may hold one: {folders}; pass subfolder=." if folders else ""
    if not inside:
        raise FileNotFoundError(f"{wanted}: the repository has no such folder, or nothing in it.")
    raise CheckpointError(f"{wanted}: holds no crosscoder, only {here}.{hint}")
