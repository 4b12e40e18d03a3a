"""SAELens SAEs as crosscoders of one source: `cfg.json` and `sae_weights.safetensors`.

W_enc [d_model, latent], W_dec [latent, d_model], b_enc, b_dec. pre = W_enc^T (x - b_dec) + b_enc, without
b_dec where `apply_b_dec_to_input` is false. standard: relu(pre); topk: the k largest, then relu; jumprelu:
relu(pre) where pre > relu(threshold); batchtopk (a training file): relu(pre) above `topk_threshold`. With
`rescale_acts_by_decoder_norm` the activations are pre * |decoder row| and the decoder rows have norm 1.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from crosscoders.activation_fns.base import ActivationFn
from crosscoders.activation_fns.batch_topk import BatchTopK
from crosscoders.activation_fns.jumprelu import JumpReLU
from crosscoders.activation_fns.relu import ReLU
from crosscoders.activation_fns.topk import TopK
from crosscoders.errors import CheckpointError
from crosscoders.hub.formats.files import ForeignFile
from crosscoders.hub.formats.numbers import RULE_NOTE, log_threshold, number_of_latents, threshold_state
from crosscoders.hub.formats.result import Given, Parts
from crosscoders.sources import Source

_KEYS = ("W_enc", "b_enc", "W_dec", "b_dec", "scaling_factor")
_STATE_KEYS = {
    "standard": (),
    "topk": (),
    "jumprelu": ("threshold", "log_threshold"),
    "batchtopk": ("topk_threshold",),
}
_BANDWIDTH_NOTE = (
    "The file has no straight-through bandwidth; that of JumpReLU's default is used if trained on."
)
_PER_TOKEN = "scales each token by its own norm; a crosscoder here has one scale per source"
_NORMALIZERS = {
    "layer_norm": _PER_TOKEN,
    "constant_norm_rescale": _PER_TOKEN,
    "covariance_whitening": "multiplies activations by a matrix that the file does not hold",
}
Activation = tuple[ActivationFn, dict[str, Tensor], tuple[str, ...]]


def matches(file: ForeignFile) -> bool:
    """Whether encoder and decoder are matrices, transposed to each other."""
    encoder, decoder = file.shapes.get("W_enc", ()), file.shapes.get("W_dec", ())
    return len(encoder) == 2 and len(decoder) == 2 and encoder[1] == decoder[0]


def read(file: ForeignFile, given: Given) -> Parts:
    """Translate the file."""
    d_model, n_latents = file.shapes["W_enc"]
    architecture = _architecture(file)
    file.check_known(*_KEYS, *_STATE_KEYS[architecture])
    file.check_config(d_in=d_model, d_sae=n_latents)
    activation_fn, state, notes = _activation(file, given, architecture, n_latents)
    W_enc, b_enc, W_dec, b_dec = _weights(file, d_model, n_latents)
    is_topk = architecture in ("topk", "batchtopk")
    if is_topk and _rescales(file, architecture):
        norms = _norms(file, W_dec)
        W_enc, b_enc, W_dec = W_enc * norms[:, None], b_enc * norms, W_dec / norms[:, None]
    if is_topk:
        notes += (RULE_NOTE.format(rule="the pre-activation alone"),)
    return Parts(
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=b_dec,
        activation_fn=activation_fn,
        sources=(_source(file, d_model),),
        scale=_scale(file),
        selection_weight=torch.ones_like(b_enc) if is_topk else None,
        activation_state=state,
        notes=notes,
    )


def _architecture(file: ForeignFile) -> str:
    config = file.config
    if not config:
        raise CheckpointError(
            f"{file.path}: expected a cfg.json beside it; without one its activation is unknown."
        )
    name = config.get("architecture", "standard")
    fn = config.get("activation_fn_str", config.get("activation_fn", "relu"))
    if name == "standard" and fn == "topk":
        name = "topk"
    elif fn not in ("relu", "topk"):
        raise CheckpointError(
            f"{file.path}: activation {fn!r} cannot be represented; known are relu and topk."
        )
    if name == "gated":
        raise CheckpointError(
            f"{file.path}: a gated SAE decides by one pre-activation and takes its value from another; a "
            "crosscoder here has one pre-activation for both."
        )
    if not isinstance(name, str) or name not in _STATE_KEYS:
        raise CheckpointError(
            f"{file.path}: architecture {name!r} cannot be represented; known are {sorted(_STATE_KEYS)}."
        )
    return name


def _activation(file: ForeignFile, given: Given, architecture: str, n_latents: int) -> Activation:
    if architecture == "standard":
        return ReLU(), {}, ()
    if architecture == "jumprelu":
        return JumpReLU(), {"log_threshold": _log_threshold(file, n_latents)}, (_BANDWIDTH_NOTE,)
    kwargs = file.config.get("activation_fn_kwargs")
    stored = file.config.get("k", kwargs.get("k") if isinstance(kwargs, Mapping) else None)
    k = number_of_latents(file, given, stored)
    if architecture == "topk":
        return TopK(k=k), {}, ()
    # It starts at 0.0 and is a moving average of positive numbers: 0.0 is a file that was never trained.
    value = file.scalar("topk_threshold") if "topk_threshold" in file.shapes else 0.0
    state, unset = threshold_state(file, value if value > 0 else None)
    return BatchTopK(k=k), state, unset


def _log_threshold(file: ForeignFile, n_latents: int) -> Tensor:
    stored = [key for key in _STATE_KEYS["jumprelu"] if key in file.shapes]
    if len(stored) != 1:
        raise CheckpointError(f"{file.path}: expected one of threshold and log_threshold, got {stored}.")
    if stored == ["log_threshold"]:
        return file.weight("log_threshold", n_latents)
    threshold = file.tensor("threshold")
    if tuple(threshold.shape) != (n_latents,) or bool(threshold.isnan().any()):
        raise CheckpointError(f"{file.path}: threshold should be [{n_latents}] without NaN.")
    dtype = torch.float64 if threshold.dtype == torch.float64 else torch.float32
    return log_threshold(threshold.to(dtype).relu())


def _weights(file: ForeignFile, d_model: int, n_latents: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    W_enc, W_dec = file.weight("W_enc", d_model, n_latents).T, file.weight("W_dec", n_latents, d_model)
    b_enc, b_dec = file.weight("b_enc", n_latents), file.weight("b_dec", d_model)
    if _flag(file, "apply_b_dec_to_input", default=True):
        b_enc = (b_enc.double() - W_enc.double() @ b_dec.double()).to(b_enc.dtype)
    is_scaled = _flag(file, "finetuning_scaling_factor", default=False)
    if is_scaled or "scaling_factor" in file.shapes:
        factor = file.weight("scaling_factor", n_latents)
        if not is_scaled and not torch.allclose(factor, torch.ones_like(factor)):
            raise CheckpointError(
                f"{file.path}: scaling_factor is not 1, but finetuning_scaling_factor is false."
            )
        W_dec = W_dec * factor[:, None]
    return W_enc, b_enc, W_dec, b_dec


def _rescales(file: ForeignFile, architecture: str) -> bool:
    if architecture == "batchtopk" and "rescale_acts_by_decoder_norm" not in file.config:
        raise CheckpointError(
            f"{file.path}: a batchtopk cfg.json should state rescale_acts_by_decoder_norm; its "
            "versions differ."
        )
    return _flag(file, "rescale_acts_by_decoder_norm", default=False)


def _norms(file: ForeignFile, W_dec: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(W_dec, dim=1)
    if not bool((norms > 0).all()):
        raise CheckpointError(
            f"{file.path}: a decoder row is zero, and the activations are rescaled by its norm; "
            "its own library "
            "gives NaN for it."
        )
    return norms


def _scale(file: ForeignFile) -> tuple[float, ...] | None:
    normalize: Any = file.config.get("normalize_activations")
    if normalize in ("none", False, None):
        return (1.0,)
    if normalize in ("expected_average_only_in", True):
        return None
    reason = _NORMALIZERS.get(normalize, "is unknown") if isinstance(normalize, str) else "is unknown"
    raise CheckpointError(f"{file.path}: normalize_activations {normalize!r} {reason}.")


def _source(file: ForeignFile, d_model: int) -> Source:
    metadata = file.config.get("metadata")
    said = {**file.config, **(metadata if isinstance(metadata, dict) else {})}
    hook_name, model_id = said.get("hook_name") or said.get("hook_point"), said.get("model_name")
    return Source(
        name="source",
        d_model=d_model,
        hook_name=hook_name if isinstance(hook_name, str) else "",
        model_id=model_id if isinstance(model_id, str) else "",
    )


def _flag(file: ForeignFile, name: str, *, default: bool) -> bool:
    value = file.config.get(name, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{file.path}: {name} should be true or false, got {value!r}.")
    return value
