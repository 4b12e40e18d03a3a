"""Booting a TransformerLens bridge beside a Hugging Face model, without touching that model.

`TransformerBridge.boot_transformers(hf_model=...)` wraps the layers of the model it gets and switches it to
eager attention. The bridge here therefore wraps a copy of the modules that shares every parameter and buffer
with the original: no weights are copied, and later changes of the weights in place are seen by both.
"""

import copy
import itertools
from typing import Any

from torch import nn

from crosscoders.errors import AdapterMismatchError


def is_bridge(model: Any) -> bool:
    """Whether a model is a TransformerBridge, told without importing TransformerLens.

    Args:
        model: Anything.
    """
    return any(
        cls.__name__ == "TransformerBridge" and cls.__module__.startswith("transformer_lens")
        for cls in type(model).__mro__
    )


def boot_bridge(hf_model: nn.Module, *, model_id: str, tokenizer: Any) -> Any:
    """Boot a TransformerBridge that shares its weights with a Hugging Face model.

    Args:
        hf_model: The model; it is left as it is.
        model_id: Name for the bridge's config.
        tokenizer: Its tokenizer, or None; a copy is used.

    Returns:
        The bridge.

    Raises:
        AdapterMismatchError: TransformerLens cannot wrap this architecture.
    """
    from transformer_lens.model_bridge import TransformerBridge

    shared = {id(t): t for t in itertools.chain(hf_model.parameters(), hf_model.buffers())}
    twin = copy.deepcopy(hf_model, memo=dict(shared))
    parameter = next(hf_model.parameters())
    try:
        return TransformerBridge.boot_transformers(
            model_id or type(hf_model).__name__,
            hf_model=twin,
            tokenizer=_bridge_tokenizer(tokenizer),
            device=str(parameter.device),
            dtype=parameter.dtype,
        )
    except Exception as err:
        raise AdapterMismatchError(
            f"{model_id or type(hf_model).__name__}: TransformerLens could not boot a bridge for "
            f"{type(hf_model).__name__} ({err}); residual-stream hooks work without one."
        ) from err


def _bridge_tokenizer(tokenizer: Any) -> Any:
    # A tokenizer with a BOS token is loaded again by its name unless it says that it adds BOS itself; saying
    # so keeps tokenizers without a name_or_path, and machines without a network, working.
    if tokenizer is None:
        return _placeholder_tokenizer()
    twin = copy.deepcopy(tokenizer)
    twin.init_kwargs = {**twin.init_kwargs, "add_bos_token": True}
    twin.init_kwargs.setdefault("name_or_path", "")
    return twin


def _placeholder_tokenizer() -> Any:
    """A tokenizer for a bridge that will only ever be given token ids."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    word_level = Tokenizer(WordLevel({"<eos>": 0}, unk_token="<eos>"))
    return PreTrainedTokenizerFast(tokenizer_object=word_level, eos_token="<eos>", pad_token="<eos>")
