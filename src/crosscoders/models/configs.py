"""Configs of models that are named but not loaded: which of several hooks lies deepest, what a plan needs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crosscoders._typing import typed
from crosscoders.models.hooks import parse_residual_hook
from crosscoders.models.model_config import CONFIG_FILE, cut_at, read_config
from crosscoders.models.model_folder import download_file


@typed
def find_config(model: str | Path, *, revision: str | None = None) -> Any:
    """The transformers config of a model; of a Hub id nothing but `config.json` is fetched.

    Args:
        model: Local directory, Hub id, or path of a config file under any name.
        revision: Hub revision; only for Hub ids.

    Returns:
        A transformers config.

    Raises:
        CheckpointError: The file is no config that transformers can use.
        ValueError: A revision was given for a local path, or the id does not have the form of a Hub id.
        OSError: Nothing is there, or the Hub refused or could not be reached and the cache lacks it.
    """
    path = Path(model).expanduser()
    if path.exists():
        if revision is not None:
            raise ValueError(f"revision={revision!r} is for Hub ids, but {model} is a local path.")
        return read_config(path)
    try:
        fetched = download_file(str(model), CONFIG_FILE, revision=revision or "main")
    except OSError as err:
        raise OSError(f"{model}: no such file or folder, and not to be had from the Hub: {err}") from err
    except ValueError as err:
        raise ValueError(f"{model}: no such file or folder, and no Hub id ({err})") from err
    if fetched is None:
        raise FileNotFoundError(f"{model}: no such file or folder; that repository has no {CONFIG_FILE}.")
    return read_config(fetched)


@typed
def deepest_hook(hook_names: Sequence[str], model: str | Path, *, revision: str | None = None) -> str | None:
    """The one of these hooks that a model must be read up to.

    Args:
        hook_names: Hook names, "half" among them perhaps.
        model: Where its config lies; read only if the hooks differ.
        revision: Hub revision; only for Hub ids.

    Returns:
        The deepest, or None if one of them is not on the residual stream, which needs the whole model.

    Raises:
        ValueError: The model lacks one of the hooks.
    """
    if len(set(hook_names)) == 1:
        return hook_names[0]
    config = find_config(model, revision=revision)
    cuts = [cut_at(hook_name, config) for hook_name in hook_names]
    names = [cut.hook_name for cut in cuts if cut is not None]
    if len(names) < len(cuts):
        return None
    places = [(parse_residual_hook(name), name) for name in names]
    return max((place, name) for place, name in places if place is not None)[1]
