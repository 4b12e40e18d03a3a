"""The R1 distills: Qwen2, Qwen3 and Llama models that were trained on the traces of DeepSeek-R1.

By structure and config.json a distill is a model of its base family; no config says "R1". It is told by two
things that can be looked at:

- its id, where that names one of the published distills (a renamed folder hides it);
- its tokenizer: the BOS token of DeepSeek's tokenizers, and `<think>` as one token. For the Qwen2 distills
  the ids are known (BOS 151646, `<think>` 151648) and must be these; in Qwen2.5's own tokenizer the same ids
  are `<|object_ref_start|>` and `<|box_start|>`. Models trained on from a distill share its tokenizer and are
  recognized by it.

Either is enough. Without them the model is checked as its base family, which loses nothing but the check
that id and tokenizer agree. `recognized_by` lists what was found.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from crosscoders._typing import typed
from crosscoders.models.adapters.base import Adapter, model_type_of
from crosscoders.models.adapters.gated_layer import HEAD_NORMS, LAYER_NORMS
from crosscoders.models.adapters.llama import llama_parameters
from crosscoders.models.adapters.qwen import qwen2_parameters, qwen3_parameters

_BOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
_THINK = "<think>"
_QWEN2_IDS = {_BOS: 151646, _THINK: 151648}


def _evidence(
    model_type: str, config: Any, *, published_id: str, model_id: str, tokenizer: Any, ids: dict[str, int]
) -> tuple[str, ...]:
    if model_type_of(config) != model_type:
        return ()
    found: list[str] = []
    if any(re.match(published_id, name, flags=re.IGNORECASE) for name in _names(model_id)):
        found.append(f"its id is {model_id!r}")
    if tokenizer is not None and _is_r1_tokenizer(tokenizer, ids=ids):
        think = tokenizer.get_vocab()[_THINK]
        found.append(
            f"its tokenizer begins sequences with DeepSeek's BOS token and has <think> as id {think}"
        )
    return (f"config.model_type is {model_type!r}", *found) if found else ()


def _names(model_id: str) -> list[str]:
    """What a Hub id, a folder or a snapshot folder of the Hub cache calls the model."""
    parts = Path(model_id).parts
    return [*parts[-1:], *(part.split("--")[-1] for part in parts if part.startswith("models--"))]


def _is_r1_tokenizer(tokenizer: Any, *, ids: dict[str, int]) -> bool:
    vocabulary = tokenizer.get_vocab()
    return (
        tokenizer.bos_token == _BOS
        and _THINK in vocabulary
        and all(vocabulary.get(token) == token_id for token, token_id in ids.items())
    )


@final
@dataclass(frozen=True, kw_only=True)
class R1DistillQwen(Adapter):
    """DeepSeek-R1-Distill-Qwen 1.5B, 7B, 14B and 32B: Qwen2 with DeepSeek's special tokens."""

    family: ClassVar[str] = "r1-distill-qwen"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2",)
    token_ids: ClassVar[Mapping[str, int]] = _QWEN2_IDS

    @classmethod
    @typed
    def recognize(cls, config: Any, *, model_id: str = "", tokenizer: Any = None) -> tuple[str, ...]:
        """By its id, or by its tokenizer's BOS and `<think>` at the known ids."""
        return _evidence(
            "qwen2", config, published_id=r"deepseek-r1-distill-qwen", model_id=model_id,
            tokenizer=tokenizer, ids=_QWEN2_IDS,
        )  # fmt: skip

    def layer_parameters(self, config: Any) -> dict[str, tuple[int, ...]]:
        """Those of Qwen2."""
        return qwen2_parameters(config)

    def rms_norms(self, config: Any) -> tuple[str, ...]:
        """Those of Qwen2."""
        return LAYER_NORMS


@final
@dataclass(frozen=True, kw_only=True)
class R1Qwen3(Adapter):
    """DeepSeek-R1-0528-Qwen3-8B: Qwen3 with DeepSeek's BOS token."""

    family: ClassVar[str] = "r1-0528-qwen3"
    model_types: ClassVar[tuple[str, ...]] = ("qwen3",)

    @classmethod
    @typed
    def recognize(cls, config: Any, *, model_id: str = "", tokenizer: Any = None) -> tuple[str, ...]:
        """By its id, or by a tokenizer with DeepSeek's BOS token and `<think>` at any id."""
        return _evidence(
            "qwen3", config, published_id=r"deepseek-r1-0528-qwen3", model_id=model_id,
            tokenizer=tokenizer, ids={},
        )  # fmt: skip

    def layer_parameters(self, config: Any) -> dict[str, tuple[int, ...]]:
        """Those of Qwen3."""
        return qwen3_parameters(config)

    def rms_norms(self, config: Any) -> tuple[str, ...]:
        """Those of Qwen3."""
        return (*LAYER_NORMS, *HEAD_NORMS)


@final
@dataclass(frozen=True, kw_only=True)
class R1DistillLlama(Adapter):
    """DeepSeek-R1-Distill-Llama 8B and 70B: Llama 3 with DeepSeek's BOS token."""

    family: ClassVar[str] = "r1-distill-llama"
    model_types: ClassVar[tuple[str, ...]] = ("llama",)

    @classmethod
    @typed
    def recognize(cls, config: Any, *, model_id: str = "", tokenizer: Any = None) -> tuple[str, ...]:
        """By its id, or by a tokenizer with DeepSeek's BOS token and `<think>` at any id."""
        return _evidence(
            "llama", config, published_id=r"deepseek-r1-distill-llama", model_id=model_id,
            tokenizer=tokenizer, ids={},
        )  # fmt: skip

    def layer_parameters(self, config: Any) -> dict[str, tuple[int, ...]]:
        """Those of Llama."""
        return llama_parameters(config)

    def rms_norms(self, config: Any) -> tuple[str, ...]:
        """Those of Llama."""
        return LAYER_NORMS
