"""Whether the attention that a model ships with agrees with the eager one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from crosscoders._typing import typed
from crosscoders.models.base import LanguageModel


@typed
def attention_error(
    model: LanguageModel, tokens: Int[Tensor, "batch pos"], *, hook_name: str = "half"
) -> float:
    """How far a model's activations under its own attention lie from those under eager attention.

    |x - x_eager| / |x_eager| over all positions together, both norms in float64, with x the activation at the
    hook. Eager attention writes out the matrix of scores that fast kernels (SDPA, flash) never form.
    Rounding alone gives about 1e-6 in float32 and 1e-2 in bfloat16.

    Args:
        model: A model with a Hugging Face module; a bridge is eager anyway and gives 0.
        tokens: A few rows of token ids; eager attention needs memory for [batch, head, pos, pos].
        hook_name: Where to compare.

    Returns:
        The relative difference.

    Raises:
        ValueError: No such hook, or tokens that the model cannot read.
    """
    if model.hf_model is None:
        return 0.0
    own = model.capture(tokens, [hook_name])[hook_name].double()
    with _eager_attention(model.hf_model):
        eager = model.capture(tokens, [hook_name])[hook_name].double()
    return float(torch.linalg.vector_norm(own - eager) / torch.linalg.vector_norm(eager))


@contextmanager
def _eager_attention(hf_model: nn.Module) -> Iterator[None]:
    """Every attention layer reads the choice from its config at each forward, so no module is touched."""
    configs: dict[int, Any] = {}
    for module in hf_model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            configs[id(config)] = config
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation
