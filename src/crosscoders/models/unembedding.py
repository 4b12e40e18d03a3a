"""How a step along the residual stream moves the logits: unembedding and final norm as one matrix."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crosscoders._typing import typed
from crosscoders.errors import AdapterMismatchError
from crosscoders.models.base import LanguageModel
from crosscoders.models.hooks import evaluation_mode, text_config

_N_TOKENS = 8  # on which the matrix is compared with the model's own logits
_MAX_ANGLE = 1e-3  # 1 - cosine; rounding in bfloat16 gives 1e-5
_LOGIT_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@typed
def logit_readout(model: LanguageModel, *, n_vocab: int | None = None) -> Float[Tensor, "vocab d_model"]:
    """The matrix R for which R d is how the logits change along a direction d of the last residual stream.

    R = (W_U - mean of W_U over the vocabulary) diag(gain), for a LayerNorm with d's own mean taken off as
    well. The division by the stream's norm is left out: it scales all logits of a token alike. This is the
    logit lens (nostalgebraist 2020) of a direction rather than of a whole stream.

    The final norm is found and its gain measured by running it, so gains stored as 1 + weight come out right;
    norm and unembedding together are compared with the model's own logits on a few tokens, so a model that
    does anything else in between (capped or scaled logits) is refused rather than misread.

    Args:
        model: A whole model.
        n_vocab: Only the first ids count, such as those that the tokenizer knows; None for all.

    Returns:
        R in float32, on the device of the model's unembedding: 4 * vocab * d_model bytes.

    Raises:
        ValueError: The model was read only up to a hook.
        AdapterMismatchError: Its logits are not the unembedding of a normed stream.
    """
    model.require_whole("the unembedding")
    head = model.causal_lm.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.is_meta:
        raise AdapterMismatchError(f"model {model.name!r}: has no unembedding whose weights can be read.")
    if getattr(text_config(model.causal_lm), "final_logit_softcapping", None) is not None:
        raise AdapterMismatchError(f"model {model.name!r}: caps its logits, which no matrix does.")
    with torch.no_grad(), evaluation_mode(model.causal_lm):
        norm, stream = _final_norm(model)
        gain, is_centered = _measured(norm, like=stream[0, 0], name=model.name)
        _check_logits(model, head, norm(stream))
        readout = weight.detach()[:n_vocab].float()
        readout = (readout - readout.mean(dim=0)) * gain.to(readout.device)
        return readout - readout.mean(dim=1, keepdim=True) if is_centered else readout


def _probe_tokens(model: LanguageModel) -> Tensor:
    return torch.arange(min(_N_TOKENS, model.n_vocab))[None]


def _final_norm(model: LanguageModel) -> tuple[nn.Module, Tensor]:
    """The module outside the layers that reads the last layer's output, and that output on a few tokens."""
    last = f"blocks.{model.n_layers - 1}.hook_resid_post"
    tokens = _probe_tokens(model)
    stream = model.capture(tokens, [last])[last]
    inside = {id(module) for module in model._layers.modules()}
    readers: list[nn.Module] = []

    def look(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        given = args[0] if args else None
        is_same = isinstance(given, Tensor) and given.shape == stream.shape and torch.equal(given, stream)
        if is_same and isinstance(output, Tensor) and output.shape == stream.shape:
            readers.append(module)

    outside = [module for module in model.causal_lm.modules() if id(module) not in inside]
    handles = [module.register_forward_hook(look) for module in outside]
    try:
        model.logits(tokens)
    finally:
        for handle in handles:
            handle.remove()
    if not readers:
        raise AdapterMismatchError(f"model {model.name!r}: no norm reads what the last layer returns.")
    return readers[0], stream


def _measured(norm: nn.Module, *, like: Tensor, name: str) -> tuple[Tensor, bool]:
    """Gain of a norm, and whether it takes the mean off, checked on random vectors."""
    probe = _mean_free(len(like)).to(like)
    plus, minus, flat = (norm(x[None, None])[0, 0].float() for x in (probe, -probe, torch.ones_like(probe)))
    x = probe.float()
    gain, bias = (plus - minus) / 2 * x.square().mean().sqrt() / x, (plus + minus) / 2
    is_centered = bool((flat - bias).norm() < (flat - bias - gain).norm())
    generator = torch.Generator().manual_seed(0)
    trial = (0.5 + torch.randn(_N_TOKENS, len(like), generator=generator)).to(like)
    centered = trial.float() - is_centered * trial.float().mean(dim=1, keepdim=True)
    cosine = torch.cosine_similarity(gain * centered, norm(trial[None])[0].float() - bias, dim=1)
    if not bool((cosine > 1 - _MAX_ANGLE).all()):
        raise AdapterMismatchError(
            f"model {name!r}: its final norm {norm!r} is neither an RMSNorm nor a LayerNorm with a gain."
        )
    return gain, is_centered


def _mean_free(n: int) -> Tensor:
    """Entries of 1 and -1, and of one -2 if there is an odd number of them, that add up to zero."""
    signs = torch.ones(n)
    signs[1::2] = -1.0
    if n % 2:
        signs[-3:] = torch.tensor([1.0, 1.0, -2.0])
    return signs


def _check_logits(model: LanguageModel, head: nn.Module, normed: Tensor) -> None:
    logits = model.logits(_probe_tokens(model)).float()
    error = float((head(normed).float() - logits).norm() / logits.norm())
    if not error <= _LOGIT_TOLERANCE.get(model.dtype, 0.0):
        raise AdapterMismatchError(
            f"model {model.name!r}: its logits differ by {error:.2g} of their norm from the unembedding of "
            "the normed stream, so something else scales or caps them."
        )
