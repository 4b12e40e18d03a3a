"""Running only the part of a model that an edit can change."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from crosscoders.models.base import LanguageModel
from crosscoders.models.hooks import decoder_layers, has_own_hooks, parse_residual_hook


@contextmanager
def replayed_prefix(
    model: LanguageModel, tokens: Int[Tensor, "batch pos"], *, hook_name: str
) -> Iterator[Tensor]:
    """Make repeated forwards on the same tokens start at a hook: what lies below it runs once.

    The layers below the hook give back what they gave on the first forward, so an edit at the hook or above
    sees exactly what it would see otherwise. Nothing is skipped where other edits are active, where anything
    below the hook carries a forward hook of anyone's (which would act on its own result), or where the model
    is a bridge without its Hugging Face module.

    Args:
        model: The model; inside the block, call it on these tokens only.
        tokens: Token ids.
        hook_name: Residual-stream hook.

    Yields:
        The logits of that first forward.

    Raises:
        ValueError: The hook does not exist.
    """
    place = parse_residual_hook(model.resolve_hook(hook_name))
    layers = decoder_layers(model.causal_lm)
    below = [] if place is None else list(layers[: place.layer + place.is_output])
    if not below or model.hf_model is None or has_own_hooks(layers) or _have_hooks(below):
        yield model.logits(tokens)
        return
    output, logits = _output_of(below[-1], model, tokens)
    before = [vars(layer).get("forward") for layer in below]
    try:
        for layer in below:
            layer.forward = lambda *args, **kwargs: output
        yield logits
    finally:
        for layer, forward in zip(below, before, strict=True):
            if forward is None:
                del layer.forward  # the method of its class shows again
            else:
                layer.forward = forward


def _have_hooks(layers: Iterable[nn.Module]) -> bool:
    """Whether anyone's forward hook or pre-hook sits on any part of these layers, or on all modules."""
    everywhere = nn.modules.module
    return bool(everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks) or any(
        module._forward_hooks or module._forward_pre_hooks for layer in layers for module in layer.modules()
    )


def _output_of(layer: nn.Module, model: LanguageModel, tokens: Tensor) -> tuple[Any, Tensor]:
    seen: list[Any] = []
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        logits = model.logits(tokens)
    finally:
        handle.remove()
    return seen[-1], logits
