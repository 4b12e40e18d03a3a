"""Reading a model only up to its deepest hook: no later layer, no final norm, no unembedding.

A crosscoder at half depth needs the embedding and half of the blocks. Only their tensors are read, from the
shards that hold them, so memory, disk and download shrink alike; the activations are bit for bit those of the
whole model, because the same modules run in the same attention implementation on the same weights.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crosscoders._typing import typed
from crosscoders.errors import AdapterMismatchError, CheckpointError
from crosscoders.models.checkpoint_files import CheckpointReader
from crosscoders.models.hooks import CutEnd, decoder_layers
from crosscoders.models.model_config import Cut, config_depth, cut_at, cut_config, meta_model, read_config
from crosscoders.models.model_folder import ModelFolder, open_model_folder

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Buffers that older releases of transformers stored; models now compute them.
_OLD_BUFFERS = (r"rotary_emb\.inv_freq$", r"\.masked_bias$", r"position_ids$")
_ADVICE = "The config and the weights belong to different models, or the checkpoint is incomplete."


@dataclass(frozen=True, kw_only=True)
class TruncatedModel:
    """What `load_truncated` read.

    Args:
        decoder: The Hugging Face decoder without what lies beyond the cut, in evaluation mode; its
            `last_hidden_state` is the residual stream there, without the final norm.
        cut: Where it ends.
        bytes_read: Bytes of the tensors that were read from the shards.
        shards: Files that were opened.
        commit: Hub commit that it came from; None for a folder.
    """

    decoder: Any
    cut: Cut
    bytes_read: int
    shards: tuple[str, ...]
    commit: str | None


@typed
def load_truncated(
    model: str | Path | ModelFolder,
    *,
    up_to: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    revision: str | None = None,
) -> TruncatedModel:
    """Read the embedding and the blocks that a residual-stream hook needs.

    From the Hub only the config, the index and the shards that hold these tensors are downloaded, all of one
    commit.

    Args:
        model: Local directory, Hub id, or a folder that `open_model_folder` opened.
        up_to: Deepest residual-stream hook that will be read, or "half".
        dtype: Dtype of the weights.
        device: Where they go.
        revision: Hub revision; only for Hub ids.

    Returns:
        The decoder and what was read for it.

    Raises:
        CheckpointError: A shard, the index or the config is missing or damaged, or a tensor is missing, has
            another shape, or has no place in the model of this config.
        AdapterMismatchError: The architecture cannot be cut.
        ValueError: The model has no such hook, or the hook needs the whole model.
        OSError: A file cannot be read or downloaded.
    """
    folder = model if isinstance(model, ModelFolder) else open_model_folder(str(model), revision=revision)
    config = read_config(folder.path)
    cut = cut_at(up_to, config)
    if cut is None:
        raise ValueError(
            f"load_truncated: {up_to!r} is no residual-stream hook; read the whole model for it."
        )
    reader = CheckpointReader(folder.path, fetch=folder.fetch)
    _check_depth(config, reader)
    decoder = _read_decoder(reader, config, cut, dtype=dtype)
    return TruncatedModel(
        decoder=nn.Module.to(decoder, device),
        cut=cut,
        bytes_read=reader.bytes_read,
        shards=reader.opened,
        commit=folder.commit,
    )


@typed
def load_whole(folder: ModelFolder, *, dtype: torch.dtype) -> Any:
    """Load a whole causal language model through transformers, with its files checked first.

    Args:
        folder: The opened folder; from the Hub, every shard is downloaded.
        dtype: Dtype of the weights.

    Returns:
        The Hugging Face model on the CPU, in evaluation mode.

    Raises:
        CheckpointError: As for `load_truncated`.
        OSError: A file cannot be read or downloaded.
    """
    import transformers

    auto_class: Any = transformers.AutoModelForCausalLM
    config = read_config(folder.path)
    reader = CheckpointReader(folder.path, fetch=folder.fetch)
    reader.check_all()
    _check_depth(config, reader)
    layers = _layers_name(meta_model(config, dtype=dtype))
    return _through_transformers(
        functools.partial(
            auto_class.from_pretrained, folder.path, use_safetensors=True, trust_remote_code=False
        ),
        folder=folder.path,
        layers=layers,
        config=config,
        dtype=dtype,
    )


@typed
def tensor_bytes(config: Any, *, up_to: str | None, dtype: torch.dtype) -> int:
    """Bytes of the parameters that loading a model holds, exact and without reading or allocating any.

    Args:
        config: The model's transformers config.
        up_to: Hook up to which it is read; None, or a hook outside the residual stream, is the whole model.
        dtype: Dtype of the weights.

    Raises:
        ValueError: The model has no such hook.
        AdapterMismatchError: The architecture cannot be cut.
    """
    cut = None if up_to is None else cut_at(up_to, config)
    if cut is None:
        return held_bytes(meta_model(config, dtype=dtype))
    frame = _Frame(config, cut, dtype=dtype)
    return held_bytes(frame.strip(frame.decoder))


@typed
def truncated_share(config: Any, *, up_to: str = "half") -> float:
    """Share of a model's parameter bytes that is held when it is read only up to a hook.

    Args:
        config: The model's transformers config.
        up_to: The hook.
    """
    dtype = torch.bfloat16  # any dtype gives the same share
    return tensor_bytes(config, up_to=up_to, dtype=dtype) / tensor_bytes(config, up_to=None, dtype=dtype)


@typed
def held_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters; what is shared (tied embeddings) counts once, buffers do not count.

    Args:
        module: The module, on any device (meta included).
    """
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


class _Frame:
    """The decoder of a cut config on the meta device: which tensors it needs, under which names."""

    def __init__(self, config: Any, cut: Cut, *, dtype: torch.dtype) -> None:
        self.cut = cut
        self.config = cut_config(config, n_layers=cut.n_layers_held)
        whole = meta_model(self.config, dtype=dtype)
        self.prefix = str(getattr(whole, "base_model_prefix", ""))
        self.decoder: Any = getattr(whole, self.prefix, None)
        name = type(whole).__name__
        if self.decoder is None:
            raise AdapterMismatchError(f"{name}: has no decoder apart from its head; leave up_to out.")
        self.layers = _layers_name(whole).removeprefix(f"{self.prefix}.")
        self.final_norm = _final_norm(self.decoder, self.layers)
        if self.final_norm is None:
            raise AdapterMismatchError(f"{name}: has no final norm behind its layers; leave up_to out.")
        self.tensors: dict[str, Tensor] = dict(self.decoder.state_dict())
        self.needed = {key for key in self.tensors if not key.startswith(f"{self.final_norm}.")}

    def wants(self, key: str) -> bool:
        """Whether a stored tensor lies before the hook."""
        layer = self.layer_of(key)
        return key in self.needed if layer is None else layer < self.cut.n_layers_held

    def ignores(self, key: str) -> bool:
        """Whether a stored tensor is one that models of this kind no longer have."""
        patterns = (*(getattr(self.decoder, "_keys_to_ignore_on_load_unexpected", None) or ()), *_OLD_BUFFERS)
        return key not in self.tensors and any(re.search(pattern, key) for pattern in patterns)

    def has_no_place_for(self, key: str) -> bool:
        """Whether a stored tensor belongs to a layer that this architecture, at full depth, does not have."""
        layer = self.layer_of(key)
        if layer is None or self.ignores(key):
            return False
        return layer >= self.cut.n_layers or (layer < self.cut.n_layers_held and key not in self.tensors)

    def strip(self, decoder: Any) -> Any:
        """Put the cut's end in the place of a decoder's final norm."""
        parent, _, name = str(self.final_norm).rpartition(".")
        setattr(decoder.get_submodule(parent), name, CutEnd())
        return decoder

    def layer_of(self, key: str) -> int | None:
        """The layer that a stored tensor belongs to, if any."""
        match = re.match(rf"{re.escape(self.layers)}\.([0-9]{{1,9}})\.", key)
        return None if match is None else int(match[1])


def _layers_name(model: nn.Module) -> str:
    layers = decoder_layers(model)
    return next(name for name, module in model.named_modules() if module is layers)


def _final_norm(decoder: nn.Module, layers: str) -> str | None:
    """The norm that stands right behind the layers; other modules may be read early and are kept."""
    parent, _, last = layers.rpartition(".")
    names = [name for name, _ in decoder.get_submodule(parent).named_children()]
    for name in names[names.index(last) + 1 :]:
        path = f"{parent}.{name}".lstrip(".")
        module = decoder.get_submodule(path)
        if any(True for _ in module.parameters()):
            return path if "norm" in type(module).__name__.lower() else None
    return None


def _read_decoder(reader: CheckpointReader, config: Any, cut: Cut, *, dtype: torch.dtype) -> Any:
    frame = _Frame(config, cut, dtype=dtype)
    names = _names_to_read(reader, frame)
    state = {key: _read(reader, name, dtype=dtype) for key, name in names.items()}
    # The final norm takes part in the loading, unread, and is taken out afterwards.
    state |= {
        key: torch.ones(t.shape, dtype=dtype) for key, t in frame.tensors.items() if key not in frame.needed
    }
    # transformers fills modules made on the meta device, computes their rotary tables and chooses the
    # attention, exactly as when it loads the whole model.
    decoder = _through_transformers(
        functools.partial(type(frame.decoder).from_pretrained, None, state_dict=state),
        folder=reader.folder,
        layers=frame.layers,
        config=frame.config,
        dtype=dtype,
    )
    decoder.config.name_or_path = str(reader.folder)
    return frame.strip(decoder)


def _read(reader: CheckpointReader, name: str, *, dtype: torch.dtype) -> Tensor:
    tensor = reader.read(name)
    # Widening here is exact and frees the narrow copy at once; narrowing is left to transformers, which
    # keeps some models' tensors wide.
    return tensor.to(dtype) if tensor.dtype.itemsize < dtype.itemsize else tensor


def _names_to_read(reader: CheckpointReader, frame: _Frame) -> dict[str, str]:
    """The name in the checkpoint of each tensor to read, by its name in the decoder, in the files' order."""
    prefix = f"{frame.prefix}."
    is_prefixed = any(name.startswith(prefix) for name in reader.names)
    names = {
        name.removeprefix(prefix): name for name in reader.names if name.startswith(prefix) or not is_prefixed
    }
    kept = {key: name for key, name in names.items() if frame.wants(key)}
    if not _has_conversions(frame.decoder):
        kept = {key: name for key, name in kept.items() if not frame.ignores(key)}
        _check_names(reader, frame, names=names, kept=kept)
        for key, name in kept.items():
            _check_tensor(reader, name, expected=tuple(frame.tensors[key].shape))
    places = {name: reader.stored(name) for name in kept.values()}
    return dict(sorted(kept.items(), key=lambda item: (places[item[1]].path, places[item[1]].start)))


def _has_conversions(decoder: Any) -> bool:
    """Whether transformers merges or renames this model's stored tensors (experts) while it loads them."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    return bool(get_model_conversion_mapping(decoder, add_legacy=False))


def _check_names(
    reader: CheckpointReader, frame: _Frame, *, names: dict[str, str], kept: dict[str, str]
) -> None:
    missing = sorted(frame.needed - kept.keys())
    if missing:
        raise CheckpointError(
            f"{reader.folder}: {len(missing)} tensors that the config asks for are missing, such as "
            f"{frame.prefix}.{missing[0]}. {_ADVICE}"
        )
    absent = sorted(set(range(frame.cut.n_layers)) - {frame.layer_of(key) for key in names})
    if absent:
        raise CheckpointError(
            f"{reader.folder}: the config has {frame.cut.n_layers} layers, but layer {absent[0]} has "
            f"no tensors. {_ADVICE}"
        )
    foreign = sorted(name for key, name in names.items() if frame.has_no_place_for(key))
    if foreign:
        raise CheckpointError(
            f"{reader.folder}: {len(foreign)} stored tensors have no place in the {frame.cut.n_layers}-layer "
            f"model of this config, such as {foreign[0]}. {_ADVICE}"
        )


def _check_tensor(reader: CheckpointReader, name: str, *, expected: tuple[int, ...]) -> None:
    stored = reader.stored(name)
    if stored.shape != expected:
        raise CheckpointError(
            f"{reader.folder}: tensor {name!r} should have shape {expected} by the config, got "
            f"{stored.shape}. {_ADVICE}"
        )
    if stored.dtype not in _FLOATS:
        raise CheckpointError(
            f"{reader.folder}: tensor {name!r} is stored as {stored.dtype}; quantized weights cannot be read "
            "in part, leave up_to out."
        )


def _through_transformers(
    load: Callable[..., Any], *, folder: Path, layers: str, config: Any, dtype: torch.dtype
) -> Any:
    try:
        model, info = load(
            config=config,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with both shapes
        )
    except Exception as err:  # transformers documents none, and the files themselves were found sound
        raise CheckpointError(
            f"{folder}: transformers could not load this checkpoint ({type(err).__name__}: {err})."
        ) from err
    _check_loaded(folder, info, layers=layers)
    return model


def _check_loaded(folder: Path, info: Any, *, layers: str) -> None:
    """Refuse what transformers would only log: tensors made up, dropped or of another shape."""
    if info["mismatched_keys"]:
        name, got, expected = sorted(info["mismatched_keys"])[0]
        raise CheckpointError(
            f"{folder}: tensor {name!r} should have shape {tuple(expected)} by the config, got {tuple(got)}. "
            f"{_ADVICE}"
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise CheckpointError(
            f"{folder}: {len(missing)} tensors that the config asks for are missing, such as {missing[0]}. "
            f"{_ADVICE}"
        )
    foreign = sorted(name for name in info["unexpected_keys"] if name.startswith(f"{layers}."))
    if foreign or info["error_msgs"]:
        raise CheckpointError(
            f"{folder}: {len(foreign)} stored tensors have no place in the model of this config, such as "
            f"{(foreign or info['error_msgs'])[0]}. {_ADVICE}"
        )


def _check_depth(config: Any, reader: CheckpointReader) -> None:
    # Before anything of this depth is built: a damaged config may ask for thousands of layers.
    n_layers, n_tensors = config_depth(config), len(reader.names)
    if n_layers > n_tensors:
        raise CheckpointError(
            f"{reader.folder}: the config has {n_layers} layers, but the files hold {n_tensors} "
            f"tensors. {_ADVICE}"
        )
