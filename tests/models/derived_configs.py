"""Configs of models whose config.json is not among the real files: the nearest real one with what differs.

Every entry is derived, not downloaded; what differs is what the data folder's README states (ties, contexts,
eps, vocabulary) and what is publicly known of the model.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

REAL = (
    "Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen2.5-3B", "Qwen2.5-7B", "Qwen2.5-7B-Instruct", "Qwen2.5-14B",
    "Qwen2.5-32B", "Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-4B", "Qwen3-8B", "Qwen3-32B",
)  # fmt: skip

_MATH = {"max_position_embeddings": 4096, "sliding_window": 4096, "rope_theta": 10000.0}
_R1_MATH = {"max_position_embeddings": 131072, "rope_theta": 10000.0, "tie_word_embeddings": False}
_R1_LARGE = {"rms_norm_eps": 1e-05, "vocab_size": 152064, "tie_word_embeddings": False}
_R1_QWEN3 = {
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768,
        "attention_factor": 0.8782488562869419,
    },
}  # fmt: skip
_LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}  # fmt: skip

# Name -> (real config that it builds on, or None; what differs).
DERIVED: dict[str, tuple[str | None, dict[str, Any]]] = {
    "Qwen2.5-Math-1.5B": ("Qwen2.5-1.5B", {**_MATH, "tie_word_embeddings": True}),
    "Qwen2.5-Math-7B": ("Qwen2.5-7B", {**_MATH, "tie_word_embeddings": False}),
    "DeepSeek-R1-Distill-Qwen-1.5B": ("Qwen2.5-1.5B", _R1_MATH),
    "DeepSeek-R1-Distill-Qwen-7B": ("Qwen2.5-7B", _R1_MATH),
    "DeepSeek-R1-Distill-Qwen-14B": ("Qwen2.5-14B", _R1_LARGE),
    "DeepSeek-R1-Distill-Qwen-32B": ("Qwen2.5-32B", _R1_LARGE),
    "DeepSeek-R1-0528-Qwen3-8B": ("Qwen3-8B", _R1_QWEN3),
    "Llama-3.1-8B": (None, _LLAMA_8B),
    "DeepSeek-R1-Distill-Llama-8B": (None, _LLAMA_8B),
}


def derived_config(name: str, read: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """The derived config of a model.

    Args:
        name: A key of `DERIVED`.
        read: Gives the content of a real config by its name, such as "Qwen2.5-1.5B".
    """
    base, differs = DERIVED[name]
    return {**({} if base is None else read(base)), **differs}


def narrow_config(config: dict[str, Any], *, n_layers: int = 4, n_vocab: int = 96) -> dict[str, Any]:
    """The same model cut to a few layers and a small width; eps, ties, rotary settings and head norms stay.

    Heads stay wider than `hidden_size / num_attention_heads` where the real ones may be.
    """
    narrow = {
        "num_hidden_layers": n_layers, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": n_vocab, "head_dim": 32, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    return config | {key: value for key, value in narrow.items() if key in config}


def narrow_model(config: dict[str, Any], *, seed: int = 0, n_vocab: int = 96) -> Any:
    """A random model of the narrow config, in evaluation mode."""
    kind = AutoConfig.for_model(**narrow_config(config, n_vocab=n_vocab))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(kind).eval()
