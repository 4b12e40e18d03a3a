"""A crosscoder by the name of its folder or of its repository."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from crosscoders._io import is_member_name
from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.errors import CheckpointError
from crosscoders.hub.cache import commit_of, is_native
from crosscoders.hub.formats import read_foreign
from crosscoders.hub.names import is_repo_id, place
from crosscoders.hub.snapshots import pull
from crosscoders.sources import Source


@typed
def from_pretrained(
    path_or_repo: str | Path,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    scale: Sequence[float] | Mapping[str, float] | None = None,
    sources: Sequence[Source] | None = None,
    device: torch.device | str | None = None,
    cache_dir: Path | str | None = None,
    local_files_only: bool = False,
    token: bool | str | None = None,
) -> Crosscoder:
    """Read a crosscoder from a folder or from the Hub; it comes in eval mode, in the dtype it was saved in.

    A string that names an existing folder or file means that; any other is a repository. Only safetensors
    files are read. An artifact of this library carries its sources and scales; the file of another
    library is recognized by its keys (docs/hub.md) and needs them where it lacks them: nothing is guessed.

    Args:
        path_or_repo: A folder that `Crosscoder.save_pretrained` wrote, a foreign folder or safetensors file,
            or "owner/name".
        revision: Branch, tag or commit of a repository; the commit is recorded as `crosscoder.origin`.
        subfolder: Folder inside the folder or repository.
        scale: Scale of each source, by name or in order, if the file has none; `estimate_scale` gives one.
        sources: What the columns are, if the file does not say.
        device: Where to put it; None for the CPU.
        cache_dir: Root of the Hub's cache.
        local_files_only: Ask nobody; take what was pulled before.
        token: As `huggingface_hub` takes it.

    Returns:
        The crosscoder; `origin` is "owner/name@commit", with ":subfolder", if it came from the Hub.

    Raises:
        CheckpointError: No such folder, a byte changed, a file or key is missing or unknown, the format is
            another, or only pickle files are there (`crosscoders convert` reads those).
        ValueError: `scale` or `sources` for an artifact that has its own, or `revision` for a folder.
        OSError: The Hub could not give it; see `pull`.
        FileNotFoundError: Neither a folder here nor a repository of that name.

    Example:
        crosscoder = from_pretrained("runs/mine")
    """
    local = Path(path_or_repo)
    if local.exists():
        if revision is not None:
            raise ValueError(f"from_pretrained: {str(local)!r} is a folder here and has no revision.")
        return _read(_inside(local, subfolder), scale=scale, sources=sources).to(device)
    if not isinstance(path_or_repo, str) or not is_repo_id(path_or_repo):
        raise CheckpointError(
            f"from_pretrained: {str(path_or_repo)!r} is not a folder here and not the name of a repository "
            "('owner/name'); expected one that Crosscoder.save_pretrained wrote."
        )
    try:
        folder = pull(
            path_or_repo,
            revision=revision,
            subfolder=subfolder,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
        )
    except FileNotFoundError as err:
        raise FileNotFoundError(f"from_pretrained: no folder {path_or_repo!r} here, and: {err}") from err
    crosscoder = _read(folder, scale=scale, sources=sources)
    crosscoder.origin = str(place(path_or_repo, revision=commit_of(folder), subfolder=subfolder))
    return crosscoder.to(device)


def _inside(folder: Path, subfolder: str | None) -> Path:
    name = (subfolder or "").rstrip("/")
    if name and not is_member_name(name):
        raise ValueError(f"from_pretrained: {subfolder!r} cannot be the name of a sub-folder.")
    return folder / name


def _read(
    folder: Path, *, scale: Sequence[float] | Mapping[str, float] | None, sources: Sequence[Source] | None
) -> Crosscoder:
    if folder.is_dir() and not any(folder.iterdir()):
        raise CheckpointError(f"{folder}: the folder is empty; expected config.json and model.safetensors.")
    if not is_native(folder):
        return read_foreign(folder, scale=scale, sources=sources).crosscoder.eval()
    if scale is not None or sources is not None:
        raise ValueError(
            f"from_pretrained: {folder} carries its own sources and scales; leave scale and sources out "
            "(Crosscoder.set_scale replaces scales)."
        )
    return Crosscoder.from_pretrained(folder)
