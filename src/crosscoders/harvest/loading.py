"""Loading the models of all sources: what each asks for, what they share, whether they fit together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from crosscoders._typing import typed
from crosscoders.harvest.model_sources import ModelSources
from crosscoders.models.base import LanguageModel
from crosscoders.models.configs import deepest_hook
from crosscoders.models.hooks import parse_residual_hook
from crosscoders.models.id_policy import IdPolicy, resolve_policy
from crosscoders.models.load import load_model


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What one source asks for; equal requests share one load."""

    model: str | int
    dtype: torch.dtype | None
    device: torch.device | None
    revision: str | None
    is_offloaded: bool


@typed
def load_sources(
    models: Mapping[str, Any],
    *,
    hook_name: str | Mapping[str, str] = "half",
    tokenizer: Any = None,
    dtype: torch.dtype | Mapping[str, torch.dtype | None] | None = None,
    device: torch.device | str | Mapping[str, torch.device | str | None] | None = None,
    revision: str | Mapping[str, str | None] | None = None,
    truncate: bool = False,
    offload: bool | Mapping[str, bool] = False,
    id_policy: IdPolicy | Literal["drop", "mask"] | None = None,
    onto: torch.device | str | None = None,
) -> ModelSources:
    """Load the models of all sources and check that they can be read together.

    One tokenization feeds every source, so tokenizers are compared; widths and depths may differ. Sources of
    one model share one load and one forward.

    Args:
        models: For each source name a local directory, Hub id, Hugging Face module, TransformerBridge or
            LanguageModel; the order is the order of the columns.
        hook_name: "half", a TransformerLens hook name for all sources, or one per source name.
        tokenizer: Tokenizer that makes the token ids, or the name of the source whose own does (for an R1
            pair the distilled one, so that `<think>` is one token); None takes the first model's, if any has
            one.
        dtype: Weights' dtype when loading from a path, for all or by source name; None is float32.
        device: Device on which a model reads, for all or by source name; None is "cpu".
        revision: Hub revision, for all or by source name; only for Hub ids.
        truncate: Read of each path only the tensors up to its deepest hook: less memory, the same
            activations, but no logits. Modules are taken as they are.
        offload: Whether the weights live in CPU memory and visit the device only while the model reads, for
            all or by source name: models whose weights do not fit together are read one after the other.
        id_policy: What happens to token ids whose meaning differs between tokenizers: "drop", "mask" or
            rules; None lets such ids raise.
        onto: Device on which the activations of all sources come together; None for the first source's.

    Returns:
        The sources, ready to harvest.

    Raises:
        AdapterMismatchError: Tokenizers whose ids differ in meaning, or a model that is not what it claims.
        ValueError: No models, a hook that a model lacks, settings for other sources than the models', or a
            module to offload that is not in CPU memory.

    Example:
        sources = load_sources({"base": "path/a", "distilled": hf_model}, hook_name="half")
        activations = sources.harvest(tokens)
    """
    if not models:
        raise ValueError("load_sources: got no models; pass {'base': ..., 'distilled': ...}.")
    names = list(models)
    hooks = _by_source("hook_name", hook_name, names)
    settings = {
        "dtype": _by_source("dtype", dtype, names),
        "device": _by_source("device", device, names),
        "revision": _by_source("revision", revision, names),
        "is_offloaded": _by_source("offload", offload, names),
    }
    requests = {
        name: _request(model, {key: value[name] for key, value in settings.items()})
        for name, model in models.items()
    }
    _check_offloaded(models, requests, hooks)
    loaded = _load(models, requests, hooks=hooks, truncate=truncate)
    tokenizers, chosen = _tokenizers(loaded, tokenizer)
    return ModelSources(
        loaded,
        hook_names={name: model.resolve_hook(hooks[name]) for name, model in loaded.items()},
        tokenizer=chosen,
        reads_on={
            name: request.device or torch.device("cpu")
            for name, request in requests.items()
            if request.is_offloaded
        },
        id_policy=resolve_policy(id_policy, tokenizers),
        onto=None if onto is None else torch.device(onto),
    )


def _tokenizers(models: Mapping[str, LanguageModel], given: Any) -> tuple[dict[str, Any], Any]:
    """Every tokenizer that the ids must suit, by name, and the one that makes them."""
    own = {name: model.tokenizer for name, model in models.items()}
    if given is None:
        return own, next((found for found in own.values() if found is not None), None)
    if not isinstance(given, str):
        return {"tokenizer": given, **own}, given
    if own.get(given) is None:
        having = sorted(name for name, found in own.items() if found is not None)
        raise ValueError(
            f"load_sources: tokenizer={given!r} asks for the one of that source, but of {sorted(own)} "
            f"only {having} have a tokenizer; name one of these or pass a tokenizer."
        )
    return own, own[given]


def _by_source(what: str, value: Any, names: Sequence[str]) -> dict[str, Any]:
    """A setting for each source, from one value for all or a mapping that names exactly the sources."""
    if not isinstance(value, Mapping):
        return dict.fromkeys(names, value)
    if set(value) != set(names):
        raise ValueError(
            f"load_sources: {what} names the sources {sorted(value)}, but the models are {sorted(names)}."
        )
    return dict(value)


def _request(model: Any, settings: Mapping[str, Any]) -> _Request:
    device = settings["device"]
    return _Request(
        model=str(model) if isinstance(model, str | Path) else id(model),
        dtype=settings["dtype"],
        device=None if device is None else torch.device(device),
        revision=settings["revision"],
        is_offloaded=settings["is_offloaded"],
    )


def _load(
    models: Mapping[str, Any], requests: Mapping[str, _Request], *, hooks: Mapping[str, str], truncate: bool
) -> dict[str, LanguageModel]:
    first: dict[_Request, LanguageModel] = {}
    loaded: dict[str, LanguageModel] = {}
    for name, request in requests.items():
        if request in first:
            loaded[name] = load_model(first[request], name=name)
            continue
        is_path = isinstance(models[name], str | Path)
        sharing = [hooks[other] for other in requests if requests[other] == request]
        is_cut = truncate and is_path
        depth = deepest_hook(sharing, models[name], revision=request.revision) if is_cut else None
        loaded[name] = first[request] = load_model(
            models[name],
            name=name,
            dtype=request.dtype,
            device=torch.device("cpu") if request.is_offloaded else request.device,
            revision=request.revision,
            up_to=depth,
        )
    return loaded


def _check_offloaded(
    models: Mapping[str, Any], requests: Mapping[str, _Request], hooks: Mapping[str, str]
) -> None:
    """Weights to offload live in CPU memory; those of modules, which are never moved, must already."""
    for name in (name for name, request in requests.items() if request.is_offloaded):
        model = models[name]
        device = model.device if isinstance(model, LanguageModel) else _first_device(model)
        if device.type != "cpu":
            raise ValueError(
                f"load_sources: offload keeps the weights of {name!r} in CPU memory, but the module is on "
                f"{device}; move it to the CPU first (modules are never changed)."
            )
        if hooks[name] != "half" and parse_residual_hook(hooks[name]) is None:
            raise ValueError(
                f"load_sources: offload works on the residual stream, but {name!r} is read at "
                f"{hooks[name]!r} through a TransformerBridge, which stays on its device; leave offload out."
            )


def _first_device(model: Any) -> torch.device:
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    return next((parameter.device for parameter in parameters), torch.device("cpu"))
