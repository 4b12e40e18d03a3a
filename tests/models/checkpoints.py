"""Small real models written to disk, and ways to damage what was written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

N_VOCAB = 512
N_LAYERS = 12
INDEX = "model.safetensors.index.json"
_SHAPE = {
    "vocab_size": N_VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip


def qwen2(**settings: Any) -> PreTrainedModel:
    return _made(Qwen2ForCausalLM, Qwen2Config(**{**_SHAPE, **settings}))


def qwen3(**settings: Any) -> PreTrainedModel:
    return _made(Qwen3ForCausalLM, Qwen3Config(**{**_SHAPE, "head_dim": 8, **settings}))


def llama(**settings: Any) -> PreTrainedModel:
    return _made(LlamaForCausalLM, LlamaConfig(**{**_SHAPE, **settings}))


def gpt2() -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=N_VOCAB, n_embd=16, n_layer=N_LAYERS, n_head=2, n_positions=128, initializer_range=0.3,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return _made(GPT2LMHeadModel, config)


def _made(kind: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # biases and norms start as constants, which would hide a mix-up
                parameter.data += 0.1 * torch.randn_like(parameter)
            assert torch.isfinite(parameter).all(), name
    return model


def write(folder: Path, model: PreTrainedModel, *, is_sharded: bool = False) -> Path:
    model.save_pretrained(folder, max_shard_size="24KB" if is_sharded else "1GB")
    assert (folder / INDEX).exists() == is_sharded
    return folder


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor, read by the safetensors library."""
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


def rename_tensors(folder: Path, rename: Callable[[str], str]) -> None:
    tensors = {rename(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


def edit_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((folder / INDEX).read_text())
    change(content["weight_map"])
    (folder / INDEX).write_text(json.dumps(content))


def safetensors_bytes(header: bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file by its parts, so that each can be wrong."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, N_VOCAB, shape, generator=torch.Generator().manual_seed(0))
