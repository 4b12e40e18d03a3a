"""Logits of a model whose residual stream was replaced at one hook."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.models.base import LanguageModel


@typed
def spliced_logits(
    model: LanguageModel,
    tokens: Int[Tensor, "batch pos"],
    *,
    hook_name: str,
    replacement: Float[Tensor, "batch pos d_model"],
    where: Bool[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, "batch pos vocab"]:
    """Next-token logits with the residual stream at a hook replaced.

    With a crosscoder's reconstruction as replacement, cross-entropy and KL against the clean logits say how
    much of what the model computes survives; with zeros they give the ablated baseline.

    Args:
        model: The model.
        tokens: Token ids, padded on the right if at all.
        hook_name: Residual-stream hook, or "half".
        replacement: Raw-space activations; rounded to the model's dtype.
        where: Positions to replace; the others keep the model's own activation. None replaces all.

    Returns:
        Logits at every position, without gradient.

    Raises:
        ValueError: The replacement does not fit the model's residual stream.
    """
    if replacement.shape[-1] != model.d_model:
        raise ValueError(
            f"spliced_logits: the replacement has width {replacement.shape[-1]}, but the residual stream of "
            f"{model.name!r} has {model.d_model}; pass this source's columns only."
        )

    def put(activation: Tensor) -> Tensor:
        spliced = replacement.to(device=activation.device, dtype=activation.dtype)
        return (
            spliced
            if where is None
            else torch.where(where.to(activation.device)[:, :, None], spliced, activation)
        )

    with model.edit(hook_name, put):
        return model.logits(tokens)
