"""Hooked models + tokens -> activations of all sources side by side; no shuffling, no state."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.models.base import LanguageModel
from crosscoders.models.hooks import parse_residual_hook
from crosscoders.models.load import load_model
from crosscoders.models.tokens import check_tokenizers
from crosscoders.sources import Source, check_sources


class ModelSources:
    """Language models, each read at one hook, that are all fed the same tokens.

    Build it with `load_sources`.

    Args:
        models: The model of each source by source name, in the order of the columns.
        hook_names: Full hook name of each source.
        tokenizer: The tokenizer whose ids all sources understand, or None.
    """

    def __init__(
        self, models: Mapping[str, LanguageModel], *, hook_names: Mapping[str, str], tokenizer: Any
    ) -> None:
        self.models = dict(models)
        self.tokenizer = tokenizer
        self.sources: tuple[Source, ...] = tuple(
            Source(
                name=name,
                d_model=_hook_width(model, hook_names[name]),
                hook_name=hook_names[name],
                model_id=model.model_id,
                revision=model.revision,
            )
            for name, model in self.models.items()
        )
        check_sources(self.sources)

    @typed
    def harvest(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos width"]:
        """Raw activations of every source at every position.

        Each model runs up to its deepest hook and no further; a model that serves several sources runs once.
        Padding needs no mask as long as it stands on the right (see `LanguageModel`).

        Args:
            tokens: Token ids, the same for all sources.

        Returns:
            float32 activations on the first model's device, sources side by side.

        Raises:
            ValueError: NaN or infinite activations; the message names source, hook and first position.
        """
        captured: dict[str, Tensor] = {}
        for names in self._sources_by_model().values():
            hooks = {name: source.hook_name for name, source in names.items()}
            activations = self.models[next(iter(names))].capture(tokens, list(dict.fromkeys(hooks.values())))
            captured |= {name: activations[hook_name] for name, hook_name in hooks.items()}
        device = captured[self.sources[0].name].device
        columns = [captured[source.name].to(device=device, dtype=torch.float32) for source in self.sources]
        for source, column in zip(self.sources, columns, strict=True):
            _check_finite(source, column)
        return torch.cat(columns, dim=-1)

    def _sources_by_model(self) -> dict[int, dict[str, Source]]:
        groups: dict[int, dict[str, Source]] = {}
        for source in self.sources:
            model = self.models[source.name]
            groups.setdefault(id(model.causal_lm), {})[source.name] = source
        return groups


@typed
def load_sources(
    models: Mapping[str, Any],
    *,
    hook_name: str | Mapping[str, str] = "half",
    tokenizer: Any = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> ModelSources:
    """Load the models of all sources and check that they can be read together.

    One tokenisation feeds every source, so tokenizers are compared; widths and depths may differ.

    Args:
        models: For each source name a local directory, Hub id, Hugging Face module, TransformerBridge or
            LanguageModel; the order is the order of the columns.
        hook_name: "half", a TransformerLens hook name for all sources, or one per source name.
        tokenizer: Tokenizer of the token ids; None takes the first model's own, if any has one.
        dtype: Weights' dtype when loading from a path; None is float32.
        device: Device when loading from a path; None is "cpu".

    Returns:
        The sources, ready to harvest.

    Raises:
        AdapterMismatchError: Tokenizers whose ids differ in meaning, or a model that is not what it claims.
        ValueError: No models, a hook that a model lacks, or hook names for other sources than the models'.

    Example:
        sources = load_sources({"base": "path/a", "distilled": hf_model}, hook_name="half")
        activations = sources.harvest(tokens)
    """
    if not models:
        raise ValueError("load_sources: got no models; pass {'base': ..., 'distilled': ...}.")
    per_source = dict.fromkeys(models, hook_name) if isinstance(hook_name, str) else dict(hook_name)
    if set(per_source) != set(models):
        raise ValueError(
            f"load_sources: hook_name names the sources {sorted(per_source)}, "
            f"but the models are {sorted(models)}."
        )
    loaded = {
        name: load_model(model, name=name, dtype=dtype, device=device) for name, model in models.items()
    }
    own = {name: model.tokenizer for name, model in loaded.items()}
    check_tokenizers({**({} if tokenizer is None else {"tokenizer": tokenizer}), **own})
    hook_names = {name: model.resolve_hook(per_source[name]) for name, model in loaded.items()}
    shared = tokenizer if tokenizer is not None else next((t for t in own.values() if t is not None), None)
    return ModelSources(loaded, hook_names=hook_names, tokenizer=shared)


def _hook_width(model: LanguageModel, hook_name: str) -> int:
    if parse_residual_hook(hook_name) is not None:
        return model.d_model
    one_token = torch.zeros(1, 1, dtype=torch.int64)
    return model.capture(one_token, [hook_name])[hook_name].shape[-1]


def _check_finite(source: Source, activations: Tensor) -> None:
    is_finite = torch.isfinite(activations).all(dim=-1)
    if not is_finite.all():
        sequence, position = torch.nonzero(~is_finite)[0].tolist()
        raise ValueError(
            f"source {source.name!r} at {source.hook_name!r}: {int((~is_finite).sum())} activations are NaN "
            f"or infinite, the first at (sequence {sequence}, position {position}); "
            "is the model's dtype too narrow (float16), or are its weights damaged?"
        )
