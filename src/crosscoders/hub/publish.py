"""A crosscoder to the Hub, in one commit, over nothing that this library did not write."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from crosscoders._io import file_entry, parse_json, write_manifest
from crosscoders._typing import typed
from crosscoders.artifact import CONFIG_NAME, read_header
from crosscoders.crosscoder import Crosscoder
from crosscoders.errors import CheckpointError
from crosscoders.hub.card import is_unedited, metadata_only, model_card
from crosscoders.hub.faults import hub_errors
from crosscoders.hub.names import Place, place
from crosscoders.hub.snapshots import list_files

CARD_NAME, EVALUATION_NAME = "README.md", "evaluation.json"
_OF_THE_HUB = {".gitattributes", CARD_NAME}
_HEADER_KEYS = ("format", "format_version", "library_version", "config_sha256")


@typed
def push_to_hub(
    crosscoder: Crosscoder | Path | str,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    commit_message: str | None = None,
    token: bool | str | None = None,
    training_summary: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    card: bool = True,
) -> str:
    """Upload an artifact and its model card as one commit; the repository is made if it does not exist.

    A folder that holds an artifact of ours is updated; any other must be empty but for what the Hub itself
    puts there. A card that was edited by hand is kept: pass `card=False`, or remove it. The `model_id` of the
    sources is uploaded as it stands, so a local folder's path becomes public with it.

    Args:
        crosscoder: A crosscoder, the folder of an artifact, or the folder of a run, whose evaluation then is
            taken from its `evaluation.json`.
        repo_id: "owner/name".
        private: Of a repository that is made here; None for the account's default.
        revision: Branch to commit to, made if missing; "main" by default.
        subfolder: Folder inside the repository, for several crosscoders in one.
        commit_message: First line of the commit.
        token: As `huggingface_hub` takes it, with the right to write.
        training_summary: JSON-ready facts to keep in `config.json`; a folder has its own.
        evaluation: Measures for the card, by title and text: nested dicts of numbers. Uploaded, with its
            checksum, as `evaluation.json`.
        card: Whether to write README.md.

    Returns:
        The commit, for `from_pretrained(repo_id, revision=...)`.

    Raises:
        FileExistsError: The place holds files that this library did not write.
        CheckpointError: The folder is damaged.
        ValueError: A name cannot be one, a number is not finite, or `training_summary` with a folder.
        OSError: As `pull`; nothing is committed then.
    """
    target = place(repo_id, revision=revision, subfolder=subfolder)
    with tempfile.TemporaryDirectory() as temporary:
        staged = _stage(crosscoder, Path(temporary), training_summary=training_summary, evaluation=evaluation)
        before = _prepare(target, private=private, token=token)
        theirs = _check_ours(target, before, new=set(staged.files), token=token)
        if card and CARD_NAME not in staged.files:  # one that the artifact lists is its card
            staged.files[CARD_NAME] = _card(target, staged, before, token=token)
        message = commit_message or f"Crosscoder with {staged.header['crosscoder']['n_latents']} latents"
        return _commit(target, staged, before, stale=theirs - set(staged.files), message=message, token=token)


@final
@dataclass(frozen=True, kw_only=True)
class _Staged:
    """What goes up: content or path by name, with what the card tells of it."""

    files: dict[str, Path | bytes]
    header: dict[str, Any]
    evaluation: Mapping[str, Any] | None


@final
@dataclass(frozen=True, kw_only=True)
class _Before:
    """The repository as it was: its commit and its files."""

    commit: str
    names: list[str]

    def inside(self, target: Place) -> set[str]:
        """Names directly in the target folder."""
        prefix = target.name_in_repo("")
        names = {name.removeprefix(prefix) for name in self.names if name.startswith(prefix)}
        return {name for name in names if "/" not in name}


def _stage(
    crosscoder: Crosscoder | Path | str,
    temporary: Path,
    *,
    training_summary: Mapping[str, Any] | None,
    evaluation: Mapping[str, Any] | None,
) -> _Staged:
    folder = temporary / "artifact"
    if isinstance(crosscoder, Crosscoder):
        crosscoder.save_pretrained(folder, training_summary=training_summary)
    else:
        if training_summary is not None:
            raise ValueError("push_to_hub: a folder carries its own training_summary; leave it out.")
        folder, evaluation = _folder_of(Path(crosscoder), evaluation)
        Crosscoder.from_pretrained(folder)  # every byte checked before anything leaves
    return _with_evaluation(folder, temporary, evaluation)


def _folder_of(path: Path, evaluation: Mapping[str, Any] | None) -> tuple[Path, Mapping[str, Any] | None]:
    """The artifact of an artifact's or a run's folder, and the run's evaluation."""
    if not (path / "crosscoder" / CONFIG_NAME).is_file():
        return path, evaluation
    measured = path / EVALUATION_NAME
    if evaluation is None and measured.is_file():
        evaluation = parse_json(measured, measured.read_bytes())
    return path / "crosscoder", evaluation


def _with_evaluation(folder: Path, temporary: Path, evaluation: Mapping[str, Any] | None) -> _Staged:
    header = read_header(folder)
    files: dict[str, Path | bytes] = {name: folder / name for name in (CONFIG_NAME, *header["files"])}
    if evaluation is not None:
        written, config = temporary / EVALUATION_NAME, temporary / CONFIG_NAME
        written.write_text(json.dumps(evaluation, indent=2, allow_nan=False) + "\n", encoding="ascii")
        header["files"][EVALUATION_NAME] = file_entry(written)
        write_manifest(config, {key: value for key, value in header.items() if key not in _HEADER_KEYS})
        header = read_header(temporary)
        files |= {EVALUATION_NAME: written, CONFIG_NAME: config}
    return _Staged(files=files, header=header, evaluation=evaluation)


def _prepare(target: Place, *, private: bool | None, token: bool | str | None) -> _Before:
    from huggingface_hub import HfApi

    with hub_errors(f"push_to_hub to {target}"):
        api = HfApi(token=token)
        api.create_repo(target.repo_id, private=private, exist_ok=True)
        if target.revision != "main":
            api.create_branch(target.repo_id, branch=target.revision, exist_ok=True)
    commit, names = list_files(target, token=token)
    return _Before(commit=commit, names=names)


def _check_ours(target: Place, before: _Before, *, new: set[str], token: bool | str | None) -> set[str]:
    """Names in the target folder that an artifact of ours lists; raise if others are in the way."""
    inside = before.inside(target)
    ours: set[str] = set()
    if CONFIG_NAME in inside:
        with tempfile.TemporaryDirectory() as temporary:
            (Path(temporary) / CONFIG_NAME).write_bytes(_read(target, CONFIG_NAME, before, token=token))
            try:
                ours = {CONFIG_NAME, *read_header(temporary)["files"]}
            except CheckpointError as err:
                raise FileExistsError(
                    f"push_to_hub: {target} holds a {CONFIG_NAME} that this library did not write; choose "
                    f"another repository or sub-folder. ({err})"
                ) from err
    # Beside an artifact of ours other files may stay; into a folder of something else nothing is put.
    in_the_way = inside & (new - ours) if ours else inside - _OF_THE_HUB
    if in_the_way:
        raise FileExistsError(
            f"push_to_hub: {target} holds {sorted(in_the_way)}, which this library did not write; choose "
            "another repository or sub-folder, or remove them yourself."
        )
    return ours & inside


def _card(target: Place, staged: _Staged, before: _Before, *, token: bool | str | None) -> bytes:
    kept: dict[str, Any] | None = {}
    if CARD_NAME in before.inside(target):
        old = _read(target, CARD_NAME, before, token=token).decode("utf-8", errors="replace")
        kept = {} if is_unedited(old) else metadata_only(old)
    if kept is None:
        raise FileExistsError(
            f"push_to_hub: {target} holds a {CARD_NAME} that this library did not write or that was edited; "
            "pass card=False to keep it, or remove it."
        )
    return model_card(
        staged.header,
        repo_id=target.repo_id,
        subfolder=target.subfolder,
        evaluation=staged.evaluation,
        metadata=kept,
    ).encode()


def _read(target: Place, name: str, before: _Before, *, token: bool | str | None) -> bytes:
    from huggingface_hub import hf_hub_download

    with hub_errors(f"push_to_hub to {target}"), tempfile.TemporaryDirectory() as cache:
        path = hf_hub_download(
            target.repo_id, target.name_in_repo(name), revision=before.commit, cache_dir=cache, token=token
        )
        return Path(path).read_bytes()


def _commit(
    target: Place,
    staged: _Staged,
    before: _Before,
    *,
    stale: set[str],
    message: str,
    token: bool | str | None,
) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    adds = [
        CommitOperationAdd(path_in_repo=target.name_in_repo(name), path_or_fileobj=content)
        for name, content in staged.files.items()
    ]
    deletes = [CommitOperationDelete(path_in_repo=target.name_in_repo(name)) for name in sorted(stale)]
    with hub_errors(f"push_to_hub to {target}"):
        info = HfApi(token=token).create_commit(
            target.repo_id,
            [*adds, *deletes],
            commit_message=message,
            revision=target.revision,
            parent_commit=before.commit,
        )
    return info.oid
