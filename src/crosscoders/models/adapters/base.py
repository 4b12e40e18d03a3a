"""What an adapter is: the expectations that one family of models must meet, and how it is recognized.

A new family is one file: a frozen dataclass deriving from `Adapter` with a `family` and its `model_types`.
Defining it (importing its module) is enough for `adapter_for`, and so for loading, to use it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from crosscoders._typing import typed
from crosscoders.errors import AdapterMismatchError
from crosscoders.models.adapters.structure import (
    check_embedding,
    check_layer_parameters,
    check_rms_norms,
    check_ties,
)
from crosscoders.models.base import LanguageModel
from crosscoders.models.hooks import text_config

_registry: dict[str, type["Adapter"]] = {}


@dataclass(frozen=True, kw_only=True)
class Adapter(ABC):
    """What is expected of the models of one family, each expectation with the check that tests it.

    A subclass says its `family` and the `config.model_type` values that it takes, and states the parameters
    of a decoder layer as a table (`layer_parameters`), so biases, query and key norms and every width follow
    from one place; `token_ids` are ids that its tokenizer must give to some tokens. A variant of a family (a
    distill of it) overrides `recognize` and asks for more evidence; of several adapters that recognize a
    model, the one with most evidence is taken.

    Args:
        recognized_by: The evidence by which `adapter_for` chose this adapter, in words.
    """

    family: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]] = ()
    token_ids: ClassVar[Mapping[str, int]] = {}

    recognized_by: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        family = cls.__dict__.get("family")
        if family is None:
            return
        known = _registry.get(family)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"Adapter family {family!r} of {cls.__qualname__} is {known.__qualname__}'s.")
        if "recognize" not in cls.__dict__:
            _refuse_taken_model_types(cls)
        _registry[family] = cls

    @classmethod
    @typed
    def recognize(cls, config: Any, *, model_id: str = "", tokenizer: Any = None) -> tuple[str, ...]:
        """The evidence that a model is of this family; empty if it is not.

        Args:
            config: Hugging Face config, or the content of a config.json.
            model_id: Directory or Hub id of the model.
            tokenizer: Its tokenizer, or None.

        Returns:
            One phrase per piece of evidence, for messages.
        """
        model_type = model_type_of(config)
        return (f"config.model_type is {model_type!r}",) if model_type in cls.model_types else ()

    @abstractmethod
    def layer_parameters(self, config: Any) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every parameter of one decoder layer; no other may exist.

        Args:
            config: Hugging Face (text) config, or the content of a config.json.

        Returns:
            Shape by name, such as {"self_attn.q_proj.bias": (1536,)}. Empty: nothing is known.
        """

    @abstractmethod
    def rms_norms(self, config: Any) -> tuple[str, ...]:
        """Names of a layer's modules that are RMSNorms with `config.rms_norm_eps`; empty: nothing is known.

        Args:
            config: Hugging Face (text) config, or the content of a config.json.

        Returns:
            Dotted names within a layer, such as "input_layernorm".
        """

    @typed
    def check(self, model: LanguageModel) -> None:
        """Test every expectation on the model's modules; nothing runs but the norms.

        Args:
            model: The model, whole or truncated.

        Raises:
            AdapterMismatchError: The first expectation that is not met: model, expectation and finding.
        """
        config = text_config(model.causal_lm)
        check_embedding(model)
        expected = dict(self.layer_parameters(config))
        if expected:
            check_layer_parameters(model, family=self.family, expected=expected)
            check_ties(model, family=self.family)
        norms = self.rms_norms(config)
        if norms:
            check_rms_norms(model, family=self.family, names=norms, eps=float(config.rms_norm_eps))

    @typed
    def check_tokenizer(self, model: LanguageModel) -> None:
        """Test that the tokenizer gives the family's `token_ids` to their tokens.

        Without a tokenizer, or with an embedding too small for these ids (a toy), there is nothing to test.

        Args:
            model: The model.

        Raises:
            AdapterMismatchError: The tokenizer contradicts what the model was recognized as.
        """
        if model.tokenizer is None or model.n_vocab <= max(self.token_ids.values(), default=0):
            return
        vocabulary = model.tokenizer.get_vocab()
        for token, expected in self.token_ids.items():
            if vocabulary.get(token) != expected:
                raise AdapterMismatchError(
                    f"model {model.name!r}, recognized as {self.family!r} ({'; '.join(self.recognized_by)}): "
                    f"expected a tokenizer with {token!r} at id {expected}, found it at "
                    f"{vocabulary.get(token)}; load the tokenizer that lies beside the model."
                )


def _refuse_taken_model_types(cls: type[Adapter]) -> None:
    for other in _registry.values():
        taken = set(cls.model_types) & set(other.model_types)
        if other.family != cls.family and "recognize" not in other.__dict__ and taken:
            raise ValueError(
                f"Adapter {cls.__qualname__} takes the model types {sorted(taken)}, which are "
                f"{other.__qualname__}'s; a variant of that family must override recognize and say by what "
                "more it is told apart."
            )


def model_type_of(config: Any) -> str:
    """`model_type` of a Hugging Face config (of its text part, if it has parts) or of a config.json.

    Args:
        config: The config, or the content of a config.json.

    Raises:
        AdapterMismatchError: It has none.
    """
    if isinstance(config, Mapping):
        found = config.get("model_type")
    else:
        part = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
        found = getattr(part, "model_type", None)
    if not found:
        raise AdapterMismatchError(
            f"expected a model's config with a model_type, got {type(config).__name__} without one; "
            "known families: " + ", ".join(known_families()) + "."
        )
    return str(found)


def known_families() -> list[str]:
    """The families that have an adapter of their own, sorted."""
    return sorted(family for family, adapter in _registry.items() if adapter.model_types)


@typed
def adapter_for_config(config: Any, *, model_id: str = "", tokenizer: Any = None) -> Adapter:
    """The adapter of a model, chosen from its config alone or with more evidence; no weights are needed.

    Args:
        config: Hugging Face config, or the content of a config.json.
        model_id: Directory or Hub id of the model, if known; a distill is told by it, or by its tokenizer.
        tokenizer: The model's tokenizer, if at hand.

    Returns:
        The adapter with most evidence, or the generic one for a `model_type` that no family takes.

    Raises:
        AdapterMismatchError: The config has no model_type.
    """
    found = [
        (adapter, adapter.recognize(config, model_id=model_id, tokenizer=tokenizer))
        for adapter in _registry.values()
    ]
    best, evidence = max(found, key=lambda each: len(each[1]))
    return best(recognized_by=evidence)


@typed
def adapter_for(model: LanguageModel) -> Adapter:
    """The adapter of a loaded model, chosen by its config, its id and its tokenizer.

    Args:
        model: The model.

    Returns:
        The adapter; its `recognized_by` says what it was chosen by.
    """
    return adapter_for_config(model.causal_lm.config, model_id=model.model_id, tokenizer=model.tokenizer)
