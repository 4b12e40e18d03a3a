"""Checks of a model's modules: parameters of each layer, embedding, ties and norms.

Names are compared without the `_original_component.` that a TransformerBridge puts in, so a bridge is checked
like the plain model inside it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from crosscoders.errors import AdapterMismatchError
from crosscoders.models.base import LanguageModel

_BRIDGED = "_original_component."


def check_embedding(model: LanguageModel) -> None:
    """One row for each id, and (unless the model projects its embedding) as wide as the residual stream.

    Args:
        model: The model.

    Raises:
        AdapterMismatchError: The embedding has another size than the config says.
    """
    shape = tuple(_weight(model.causal_lm.get_input_embeddings()).shape)
    if shape != (model.n_vocab, model.d_model):
        raise AdapterMismatchError(
            f"model {model.name!r}: the config says {model.n_vocab} ids of width {model.d_model}, but the "
            f"embedding is {list(shape)}; is this another model's config.json?"
        )


def check_layer_parameters(
    model: LanguageModel, *, family: str, expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Every held layer has exactly the expected parameters, biases and norms included, in their shapes.

    Args:
        model: The model.
        family: For messages.
        expected: Shape by name within the layer.

    Raises:
        AdapterMismatchError: A parameter is missing, unexpected or of another shape.
    """
    for index, layer in enumerate(held_layers(model)):
        found = {name.replace(_BRIDGED, ""): parameter for name, parameter in layer.named_parameters()}
        where = f"model {model.name!r}, layer {index}, checked as family {family!r}"
        for name in sorted(expected.keys() - found.keys()):
            raise AdapterMismatchError(f"{where}: expected {name} {list(expected[name])}, found none.")
        for name in sorted(found.keys() - expected.keys()):
            got = list(found[name].shape)
            raise AdapterMismatchError(f"{where}: expected no {name}, found one of shape {got}.")
        for name, shape in expected.items():
            # Quantized weights are packed integers; what they unpack to is not told by their shape.
            if found[name].is_floating_point() and tuple(found[name].shape) != shape:
                got = list(found[name].shape)
                raise AdapterMismatchError(f"{where}: expected {name} {list(shape)}, found {got}.")


def check_ties(model: LanguageModel, *, family: str) -> None:
    """Embedding and unembedding are one tensor exactly if the config says so; without an lm_head, nothing.

    Args:
        model: The model.
        family: For messages.

    Raises:
        AdapterMismatchError: Tied though the config says untied, or the other way round.
    """
    head = model.causal_lm.get_output_embeddings()
    if head is None:
        return
    is_tied = _weight(head) is _weight(model.causal_lm.get_input_embeddings())
    expects_tie = bool(model.causal_lm.config.tie_word_embeddings)
    if expects_tie and _weight(head).is_meta:
        return  # weights that accelerate keeps elsewhere are put in their places one by one
    if is_tied != expects_tie:
        words = {True: "tied", False: "untied"}
        raise AdapterMismatchError(
            f"model {model.name!r}, checked as family {family!r}: the config says that the embeddings are "
            f"{words[expects_tie]}, but they are {words[is_tied]}; is this another model's config.json?"
        )


def check_rms_norms(model: LanguageModel, *, family: str, names: tuple[str, ...], eps: float) -> None:
    """The named modules of every held layer compute `weight * x / sqrt(mean(x^2) + eps)`, tried on a vector.

    The vector has a mean and entries of the size of sqrt(eps), so a LayerNorm and another eps both show.
    Weights that are not in memory (meta device) are not tried.

    Args:
        model: The model.
        family: For messages.
        names: Module names within the layer.
        eps: The config's.

    Raises:
        AdapterMismatchError: A module computes something else.
    """
    for index, layer in enumerate(held_layers(model)):
        modules = {name.replace(_BRIDGED, ""): _unwrapped(module) for name, module in layer.named_modules()}
        for name in names:
            if not _weight(modules[name]).is_meta and not _is_rms_norm(modules[name], eps=eps):
                raise AdapterMismatchError(
                    f"model {model.name!r}, layer {index}, checked as family {family!r}: expected {name} to "
                    f"be an RMSNorm with eps {eps:g}, found {modules[name]!r} that computes something else."
                )


def held_layers(model: LanguageModel) -> list[nn.Module]:
    """The decoder layers whose weights are present: all, or the first ones of a truncated model."""
    return list(model._layers)[: model.n_layers_held]


def _is_rms_norm(module: nn.Module, *, eps: float) -> bool:
    weight = _weight(module).detach()
    ramp = torch.linspace(0.5, 2.0, weight.shape[0], device=weight.device, dtype=torch.float32)
    x = (eps**0.5 * ramp).to(weight.dtype)
    with torch.no_grad():
        got = module(x[None, None])[0, 0].float()
    exact = x.float()
    expected = weight.float() * exact * torch.rsqrt(exact.square().mean() + eps)
    rtol = max(1e-5, 4.0 * torch.finfo(weight.dtype).eps)
    return torch.allclose(got, expected, rtol=rtol, atol=0.0, equal_nan=True)


def _weight(module: nn.Module) -> Tensor:
    weight = _unwrapped(module).weight
    assert isinstance(weight, Tensor)  # an embedding, an unembedding or a norm
    return weight


def _unwrapped(module: nn.Module) -> nn.Module:
    inner = getattr(module, "_original_component", None)
    return module if inner is None else _unwrapped(inner)
