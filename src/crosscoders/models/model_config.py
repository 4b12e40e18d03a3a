"""A model's config.json: read without running anything it names, and cut to the layers that a hook needs."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crosscoders._typing import typed
from crosscoders.errors import AdapterMismatchError, CheckpointError
from crosscoders.models.checkpoint_files import read_json
from crosscoders.models.hooks import ResidualHook, nearest_names, parse_residual_hook, residual_hook_names

CONFIG_FILE = "config.json"

_MAX_LAYERS = 10_000  # beyond any model; a config object holds lists of this length
_MAX_COUNT = 1_000_000
_TOKEN_IDS = ("_id", "_ids")


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Where a model that was read in part ends.

    Args:
        hook_name: The residual-stream hook up to which it was read.
        n_layers: Layers of the whole model.
    """

    hook_name: str
    n_layers: int

    @property
    def n_layers_held(self) -> int:
        """Layers that were read: those that run before the hook."""
        place = parse_residual_hook(self.hook_name)
        assert place is not None  # cut_at made this object
        return place.layer + int(place.is_output)

    def holds(self, place: ResidualHook) -> bool:
        """Whether a place of the residual stream can be read: what layer i returns is what i + 1 reads."""
        return place <= ResidualHook(layer=self.n_layers_held, is_output=False)


@typed
def read_config(folder: Path) -> Any:
    """The transformers config of a model folder.

    Args:
        folder: The folder, or the config file itself under any name.

    Returns:
        A config object of the class that `model_type` names.

    Raises:
        CheckpointError: The file is missing, is no JSON table, names code or kernels to be downloaded, or is
            not a config that transformers can use.
    """
    from transformers import AutoConfig

    path = folder / CONFIG_FILE if folder.is_dir() else folder
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected the config.json of a Hugging Face model.")
    _check_raw(path, read_json(path))
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except Exception as err:  # transformers documents no exceptions for a config that is wrong in itself
        raise CheckpointError(f"{path}: no config that transformers can use ({_first_line(err)}).") from err


def _check_raw(path: Path, content: Any) -> None:
    """Refuse what would name files or code, or make the config object itself enormous."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a table of settings, got {type(content).__name__}.")
    if content.get("transformers_weights") is not None:
        raise CheckpointError(
            f"{path}: transformers_weights names a weight file of its own; "
            "rename that file to model.safetensors and remove the key."
        )
    for key, value in _entries(content):
        if "implementation" in key and "/" in json.dumps(value):
            raise CheckpointError(f"{path}: {key}={value!r} names code to be downloaded, which is not done.")
        limit = _MAX_LAYERS if "layer" in key else _MAX_COUNT if key.startswith(("num_", "n_")) else None
        if limit is not None and isinstance(value, int | float) and not 0 <= value <= limit:
            raise CheckpointError(f"{path}: {key} should lie between 0 and {limit}, got {value!r}.")


def _entries(content: Any) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    waiting = [content]
    while waiting:
        table = waiting.pop()
        found += list(table.items())
        waiting += [value for value in table.values() if isinstance(value, dict)]
    return found


@typed
def config_depth(config: Any) -> int:
    """Number of decoder layers by a config.

    Args:
        config: A transformers config.

    Raises:
        CheckpointError: It is the config of something without decoder layers.
    """
    depth = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    if not isinstance(depth, int) or depth < 1:
        raise CheckpointError(
            f"{type(config).__name__}: num_hidden_layers should be a positive number, got {depth!r}; is this "
            "the config.json of a language model?"
        )
    return depth


@typed
def cut_at(up_to: str, config: Any) -> Cut | None:
    """Where to cut a model that is read at one hook.

    Args:
        up_to: A hook name, or "half".
        config: Config of the whole model.

    Returns:
        The cut; None if the hook is none of the residual stream, which needs the whole model.

    Raises:
        ValueError: The model has no such hook.
    """
    n_layers = config_depth(config)
    name = f"blocks.{n_layers // 2}.hook_resid_pre" if up_to == "half" else up_to
    place = parse_residual_hook(name)
    if place is None and "hook_resid_p" not in name:
        return None
    if place is None or place.layer >= n_layers:
        raise ValueError(
            f"up_to={up_to!r}: a model of {n_layers} layers has no such hook; "
            f"the nearest are {nearest_names(name, residual_hook_names(n_layers))}."
        )
    return Cut(hook_name=name, n_layers=n_layers)


@typed
def cut_config(config: Any, *, n_layers: int) -> Any:
    """A copy of a config for a model of fewer layers; lists with one entry per layer are cut too.

    Args:
        config: Config of the whole model; stays as it is.
        n_layers: Layers to keep, counted from the first.

    Raises:
        AdapterMismatchError: The language model is a part of a larger model, or its weights are quantized.
    """
    if config.get_text_config(decoder=True) is not config:
        raise AdapterMismatchError(
            f"{type(config).__name__}: the language model is one part of this model, which can only be read "
            "whole; leave up_to out."
        )
    if getattr(config, "quantization_config", None) is not None:
        raise AdapterMismatchError(
            f"{type(config).__name__}: quantized weights can only be read whole; leave up_to out."
        )
    shorter, n_full = copy.deepcopy(config), int(config.num_hidden_layers)
    for name, value in vars(config).items():
        if isinstance(value, list | tuple) and len(value) == n_full and not name.endswith(_TOKEN_IDS):
            setattr(shorter, name, value[:n_layers])
    shorter.num_hidden_layers = n_layers
    return shorter


@typed
def meta_model(config: Any, *, dtype: torch.dtype) -> nn.Module:
    """The causal language model of a config with shapes but without memory (torch's meta device).

    Args:
        config: A transformers config.
        dtype: Dtype of its parameters.

    Raises:
        CheckpointError: transformers cannot build a causal language model from the config.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                copy.deepcopy(config), dtype=dtype, trust_remote_code=False
            )
    except Exception as err:  # as for read_config: any error of a constructor means an unusable config
        raise CheckpointError(
            f"{type(config).__name__}: transformers cannot build a causal language model from this config "
            f"({_first_line(err)}); is its config.json damaged, or that of another kind of model?"
        ) from err


def _first_line(err: BaseException) -> str:
    return f"{type(err).__name__}: {err}".splitlines()[0]
