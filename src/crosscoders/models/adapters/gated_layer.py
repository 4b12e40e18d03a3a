"""The parameters of a decoder layer with grouped-query attention and a gated MLP, read off its config."""

from collections.abc import Mapping
from typing import Any, Literal

LAYER_NORMS = ("input_layernorm", "post_attention_layernorm")
HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")


def gated_layer_parameters(
    config: Any, *, biases: tuple[str, ...] | Literal["attention_bias"], has_head_norms: bool = False
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of one layer of the Llama pattern.

    Args:
        config: Hugging Face config, or the content of a config.json.
        biases: The attention projections that have one, or "attention_bias": all four or none, as that
            setting of the config says.
        has_head_norms: Whether queries and keys are normalized per head.

    Returns:
        Shape by name; weights are [output, input].
    """
    d_model = int(_setting(config, "hidden_size"))
    d_mlp = int(_setting(config, "intermediate_size"))
    n_heads = int(_setting(config, "num_attention_heads"))
    d_head = int(_setting(config, "head_dim", None) or d_model // n_heads)
    d_query = n_heads * d_head
    d_key = int(_setting(config, "num_key_value_heads", None) or n_heads) * d_head
    attention = {
        "q_proj": (d_query, d_model),
        "k_proj": (d_key, d_model),
        "v_proj": (d_key, d_model),
        "o_proj": (d_model, d_query),
    }
    mlp = {"gate_proj": (d_mlp, d_model), "up_proj": (d_mlp, d_model), "down_proj": (d_model, d_mlp)}
    if biases == "attention_bias":
        biases = tuple(attention) if _setting(config, "attention_bias", False) else ()
    if _setting(config, "mlp_bias", False):
        biases = (*biases, *mlp)
    shapes: dict[str, tuple[int, ...]] = {}
    for block, projections in (("self_attn", attention), ("mlp", mlp)):
        for name, shape in projections.items():
            shapes[f"{block}.{name}.weight"] = shape
            if name in biases:
                shapes[f"{block}.{name}.bias"] = shape[:1]
    shapes |= {f"{name}.weight": (d_model,) for name in LAYER_NORMS}
    shapes |= {f"{name}.weight": (d_head,) for name in HEAD_NORMS if has_head_norms}
    return shapes


_REQUIRED = object()


def _setting(config: Any, key: str, default: Any = _REQUIRED) -> Any:
    if isinstance(config, Mapping):
        found = config.get(key, default)
    else:
        found = getattr(config, key, default)
    if found is _REQUIRED:
        raise ValueError(f"the config has no {key!r}, which its family needs; is it complete?")
    return found
