"""Loading a language model from a directory, the Hub, a Hugging Face module or a TransformerBridge."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from crosscoders._typing import typed
from crosscoders.models.base import LanguageModel
from crosscoders.models.bridge import is_bridge

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
_GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")


@typed
def load_model(
    model: Any,
    *,
    name: str,
    tokenizer: Any = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
) -> LanguageModel:
    """Wrap or load a causal language model.

    A module or bridge is wrapped as it is: its weights, dtype, device, attention implementation and training
    flag stay, so asking for another dtype or device raises.

    Args:
        model: Local directory, Hub id, Hugging Face causal language model, TransformerBridge, or a
            LanguageModel (which is returned under the new name).
        name: Short name for messages and sources.
        tokenizer: Tokenizer to use instead of the model's own; a module has none of its own.
        dtype: Weights' dtype when loading; None is float32. For modules: only checked.
        device: Device when loading; None is "cpu". For modules: only checked.
        revision: Hub revision to load; only for Hub ids.

    Returns:
        The model.

    Raises:
        ValueError: Nothing loadable, or a module that does not have the dtype or device asked for.

    Example:
        model = load_model("path/to/directory", name="base")
        model.capture(tokens, ["half"])
    """
    if isinstance(model, str | Path):
        loaded = _from_pretrained(
            str(model),
            name=name,
            tokenizer=tokenizer,
            dtype=torch.float32 if dtype is None else dtype,
            device="cpu" if device is None else device,
            revision=revision,
        )
    else:
        if revision is not None:
            raise ValueError(
                f"load_model {name!r}: revision={revision!r} is for Hub ids, got {type(model).__name__}."
            )
        loaded = _wrap(model, name=name, tokenizer=tokenizer)
        _check_placement(loaded, dtype=dtype, device=device)
    return loaded


def _wrap(model: Any, *, name: str, tokenizer: Any) -> LanguageModel:
    if isinstance(model, LanguageModel):
        return LanguageModel(
            name=name,
            hf_model=model.hf_model,
            bridge=model._bridge,
            tokenizer=model.tokenizer if tokenizer is None else tokenizer,
            model_id=model.model_id,
            revision=model.revision,
        )
    if is_bridge(model):
        own = model.tokenizer if tokenizer is None else tokenizer
        return LanguageModel(name=name, bridge=model, tokenizer=own, model_id=str(model.cfg.model_name))
    if isinstance(model, nn.Module) and hasattr(model, "config") and hasattr(model, "base_model"):
        model_id = str(getattr(model.config, "_name_or_path", "") or "")
        return LanguageModel(name=name, hf_model=model, tokenizer=tokenizer, model_id=model_id)
    raise ValueError(
        f"load_model {name!r}: expected a directory, a Hub id, a Hugging Face causal language model, a "
        f"TransformerBridge or a LanguageModel, got {type(model).__name__}."
    )


def _check_placement(
    model: LanguageModel, *, dtype: torch.dtype | None, device: torch.device | str | None
) -> None:
    if dtype is not None and dtype != model.dtype:
        raise ValueError(
            f"load_model {model.name!r}: asked for {dtype}, but the module has {model.dtype}; "
            "convert it first (modules are never changed) or leave dtype out."
        )
    if device is not None and torch.device(device).type != model.device.type:
        raise ValueError(
            f"load_model {model.name!r}: asked for device {device}, but the module is on {model.device}; "
            "move it first (modules are never changed) or leave device out."
        )


def _from_pretrained(
    model_id: str,
    *,
    name: str,
    tokenizer: Any,
    dtype: torch.dtype,
    device: torch.device | str,
    revision: str | None,
) -> LanguageModel:
    from transformers import AutoModelForCausalLM

    directory = Path(model_id).expanduser()
    if directory.is_dir() and revision is not None:
        raise ValueError(
            f"load_model {name!r}: revision={revision!r} is for Hub ids, but {model_id} is a directory."
        )
    where = str(directory) if directory.is_dir() else model_id
    try:
        hf_model = AutoModelForCausalLM.from_pretrained(where, dtype=dtype, revision=revision or "main")
    except (OSError, ValueError) as err:
        raise ValueError(
            f"load_model {name!r}: {model_id!r} is neither a local directory with a model nor a Hub id that "
            f"can be reached ({str(err).splitlines()[0]})."
        ) from err
    return LanguageModel(
        name=name,
        hf_model=nn.Module.to(hf_model, device).eval(),
        tokenizer=_own_tokenizer(where, revision=revision) if tokenizer is None else tokenizer,
        model_id=model_id,
        revision=getattr(hf_model.config, "_commit_hash", None),
    )


def _own_tokenizer(where: str, *, revision: str | None) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    directory = Path(where)
    if directory.is_dir() and not any((directory / file).exists() for file in _TOKENIZER_FILES):
        return None
    # Files that declare the generic class mean their tokenizer.json as it stands. AutoTokenizer overrides
    # that by the model type's own class (transformers 5.23: any qwen2 model gets byte-level splitting).
    declared = get_tokenizer_config(where, revision=revision or "main").get("tokenizer_class")
    kind = PreTrainedTokenizerFast if declared in _GENERIC_TOKENIZERS else AutoTokenizer
    return kind.from_pretrained(where, revision=revision or "main")
