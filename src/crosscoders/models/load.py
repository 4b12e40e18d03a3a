"""Loading a language model from a directory, the Hub, a Hugging Face module or a TransformerBridge."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from crosscoders._typing import typed
from crosscoders.errors import CheckpointError
from crosscoders.models.adapters.validation import validate_model
from crosscoders.models.base import LanguageModel
from crosscoders.models.bridge import is_bridge
from crosscoders.models.model_config import cut_at, read_config
from crosscoders.models.model_folder import ModelFolder, open_model_folder
from crosscoders.models.truncated import load_truncated, load_whole

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
    up_to: str | None = None,
    validate: bool = True,
) -> LanguageModel:
    """Wrap or load a causal language model.

    A module or bridge is wrapped as it is: its weights, dtype, device, attention implementation and training
    flag stay, so asking for another dtype or device raises.

    With `up_to`, only the embedding and the blocks that run before that hook are read: no later block, no
    final norm, no unembedding. Activations are bit for bit those of the whole model; what needs the rest
    (logits, generation, later hooks) raises. From the Hub only the files that hold these tensors are
    downloaded. Weights are read from safetensors alone.

    Args:
        model: Local directory, Hub id, Hugging Face causal language model, TransformerBridge, or a
            LanguageModel (which is returned under the new name).
        name: Short name for messages and sources.
        tokenizer: Tokenizer to use instead of the model's own; a module has none of its own.
        dtype: Weights' dtype when loading; None is float32. For modules: only checked.
        device: Device when loading; None is "cpu". For modules: only checked.
        revision: Hub revision to load, resolved to one commit; only for Hub ids.
        up_to: Deepest hook that will be read, or "half"; None reads the whole model, as does a hook that is
            none of the residual stream. Only when loading.
        validate: Check the model against its family and its hooks against Hugging Face's hidden states
            (`validate_model`); a module that has passed is not checked again.

    Returns:
        The model.

    Raises:
        CheckpointError: A file of the model is missing, damaged, leads out of its folder, or belongs to
            another model than the config.
        AdapterMismatchError: The model is not what its config says, or cannot be read in part.
        ValueError: Nothing loadable, a hook that the model lacks, or a module that does not have the dtype or
            device asked for.
        OSError: A file cannot be read or downloaded.

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
            up_to=up_to,
        )
    else:
        if revision is not None or up_to is not None:
            asked = f"revision={revision!r}" if revision is not None else f"up_to={up_to!r}"
            raise ValueError(
                f"load_model {name!r}: {asked} is for models that are loaded, got {type(model).__name__}."
            )
        loaded = _wrap(model, name=name, tokenizer=tokenizer)
        _check_placement(loaded, dtype=dtype, device=device)
    if validate:
        validate_model(loaded)
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
            cut=model.cut,
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
    up_to: str | None,
) -> LanguageModel:
    folder = _open_folder(model_id, name=name, revision=revision)
    cut = None if up_to is None else cut_at(up_to, read_config(folder.path))
    if cut is None:
        hf_model = nn.Module.to(load_whole(folder, dtype=dtype), device)
    else:
        hf_model = load_truncated(folder, up_to=cut.hook_name, dtype=dtype, device=device).decoder
    return LanguageModel(
        name=name,
        hf_model=hf_model.eval(),
        tokenizer=_own_tokenizer(folder.path) if tokenizer is None else tokenizer,
        model_id=model_id,
        revision=folder.commit,
        cut=cut,
    )


def _open_folder(model_id: str, *, name: str, revision: str | None) -> ModelFolder:
    try:
        return open_model_folder(model_id, revision=revision)
    except CheckpointError:
        raise
    except (OSError, ValueError) as err:
        raise ValueError(
            f"load_model {name!r}: {model_id!r} is neither a local directory with a model nor a Hub id that "
            f"can be reached ({str(err).splitlines()[0]})."
        ) from err


def _own_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    if not any((folder / file).exists() for file in _TOKENIZER_FILES):
        return None
    # Files that declare the generic class mean their tokenizer.json as it stands. AutoTokenizer overrides
    # that by the model type's own class (transformers 5.23: any qwen2 model gets byte-level splitting).
    declared = get_tokenizer_config(folder).get("tokenizer_class")
    kind = PreTrainedTokenizerFast if declared in _GENERIC_TOKENIZERS else AutoTokenizer
    return kind.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
