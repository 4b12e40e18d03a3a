"""The folder of a model: one on this machine, or the Hub cache's copy of one commit, filled as needed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from crosscoders._io import member_path
from crosscoders._typing import typed
from crosscoders.models.model_config import CONFIG_FILE

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip
_SETTINGS = ("generation_config.json",)


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """Where a model's files are.

    Args:
        path: The folder.
        commit: Hub commit whose files it holds; None for a folder of the user's.
        fetch: Brings a file of this commit into the folder, and says whether the repository has it; None for
            a folder of the user's.
    """

    path: Path
    commit: str | None = None
    fetch: Callable[[str], bool] | None = None


@typed
def open_model_folder(where: str, *, revision: str | None = None) -> ModelFolder:
    """Find a model's folder; from the Hub, resolve the revision once and fetch the small files.

    Every later file comes from the same commit. In offline mode (`HF_HUB_OFFLINE=1`) only the cache is read.

    Args:
        where: Local directory or Hub id.
        revision: Branch, tag or commit on the Hub; None is "main".

    Raises:
        CheckpointError: `config.json` is a link to a file elsewhere.
        ValueError: A revision was given for a directory, or the id does not have the form of a Hub id.
        OSError: There is no `config.json`, or the Hub refused or could not be reached and the cache lacks it.
    """
    directory = Path(where).expanduser()
    if directory.is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision!r} is for Hub ids, but {where} is a directory.")
        if not member_path(directory, CONFIG_FILE).is_file():
            raise FileNotFoundError(f"{directory}: there is no {CONFIG_FILE} in this directory.")
        return ModelFolder(path=directory)
    config = download_file(where, CONFIG_FILE, revision=revision or "main")
    if config is None:
        raise FileNotFoundError(f"{where}: this repository has no {CONFIG_FILE}.")
    folder, commit = config.parent, config.parent.name

    def fetch(name: str) -> bool:
        return download_file(where, name, revision=commit) is not None

    for name in (*TOKENIZER_FILES, *_SETTINGS):
        fetch(name)
    return ModelFolder(path=folder, commit=commit, fetch=fetch)


@typed
def download_file(repo_id: str, name: str, *, revision: str) -> Path | None:
    """The cached copy of a repository's file, downloaded if need be; None if the repository lacks it.

    In offline mode a file that is not cached counts as lacking, except `config.json`.

    Args:
        repo_id: Hub id.
        name: File name in the repository.
        revision: Branch, tag or commit.

    Raises:
        ValueError: The id does not have the form of a Hub id.
        OSError: The Hub refused or could not be reached, and the cache lacks the file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import (
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]  (its HTTP client's, whichever that is)
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
    )

    try:
        return Path(hf_hub_download(repo_id, name, revision=revision))
    except RemoteEntryNotFoundError:
        return None
    except LocalEntryNotFoundError:
        if not is_offline_mode() or name == CONFIG_FILE:
            raise
        return None
    except HTTPError as err:
        raise OSError(f"{repo_id}: {name} could not be downloaded ({err}).") from err
