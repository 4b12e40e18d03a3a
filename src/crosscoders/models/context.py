"""How long a sequence a model can read, and what to say when it is longer than the model was made for."""

import warnings
import weakref
from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

from torch import nn

from crosscoders._typing import typed
from crosscoders.models.hooks import text_config

# The longest sequence length that each module has been warned about, so that each is warned about once.
_warned: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


@runtime_checkable
class HasContext(Protocol):
    """What the checks here ask of a model; every `LanguageModel` has it."""

    @property
    def name(self) -> str:
        """Name in messages."""
        ...

    @property
    def causal_lm(self) -> Any:
        """The module with the config."""
        ...

    @property
    def n_ctx(self) -> int | None:
        """Longest sequence that the model was made for, if its config states one."""
        ...


@typed
def exceeds_context(model: HasContext, n_tokens: int) -> Literal["ok", "beyond", "impossible"]:
    """Whether a sequence fits into a model's context, and if not, whether the model can run all the same.

    The context is `LanguageModel.n_ctx`; a config without one states no limit. A model with rotary positions
    (its config has `rope_parameters`) computes a rotation for any position, so it runs beyond its context, at
    positions that it was not trained for. Any other model is taken to look positions up in a table that ends
    there (GPT-2).

    Args:
        model: The model.
        n_tokens: Length of the longest sequence.

    Returns:
        "ok" within the context, "beyond" past it with rotary positions, "impossible" past it without.
    """
    if model.n_ctx is None or n_tokens <= model.n_ctx:
        return "ok"
    return "beyond" if getattr(text_config(model.causal_lm), "rope_parameters", None) else "impossible"


@typed
def context_warning(models: Mapping[str, HasContext], sequence_length: int) -> None:
    """Warn, in one message, of every model that will be read beyond its context.

    Each model is warned about once, and again only for a longer sequence length. Models that cannot run
    that far raise.

    Args:
        models: The models by source name.
        sequence_length: Tokens of the longest sequence.

    Raises:
        ValueError: A model has no positions beyond its context.
    """
    short: dict[str, int] = {}
    for name, model in models.items():
        excess = exceeds_context(model, sequence_length)
        if excess == "impossible":
            raise ValueError(
                f"model {name!r}: sequences of {sequence_length} tokens exceed its context of {model.n_ctx}; "
                "cut the sequences shorter."
            )
        if excess == "beyond" and _warned.get(model.causal_lm, 0) < sequence_length:
            assert model.n_ctx is not None  # a model without a context is never beyond it
            short[name] = model.n_ctx
    if short:
        for name in short:
            _warned[models[name].causal_lm] = sequence_length
        contexts = ", ".join(f"{name!r} has {n_ctx}" for name, n_ctx in short.items())
        warnings.warn(
            f"sequences of {sequence_length} tokens exceed the context of {len(short)} model(s): {contexts}. "
            "Rotary positions run beyond it, but the model was not trained there, so its activations may "
            f"mean little; cut the sequences to {min(short.values())} tokens, or leave later positions out.",
            UserWarning,
            stacklevel=3,
        )


@typed
def check_context(model: HasContext, n_tokens: int) -> None:
    """Raise where a sequence is longer than a model can read, warn once where it is longer than it should be.

    Args:
        model: The model.
        n_tokens: Length of the longest sequence.

    Raises:
        ValueError: The model has no positions beyond its context.
    """
    if exceeds_context(model, n_tokens) != "ok":
        context_warning({model.name: model}, n_tokens)
