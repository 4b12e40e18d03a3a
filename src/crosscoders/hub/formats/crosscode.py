"""The run folders of crosscode: `model.pt` and `model_cfg.yaml`.

_W_enc_XiDiL [model, hook, d_model, latent], _W_dec_LXoDo [latent, model, hook, d_model], b_enc_L [latent],
_b_dec_XoDo [model, hook, d_model]; an absent bias is zero. A source is one (model, hook). The scale is not
in the files unless `is_folded` is true, where `folded_scaling_factors_*` [model, hook] are already in the
weights.
"""

import torch

from crosscoders.activation_fns.base import ActivationFn
from crosscoders.activation_fns.jumprelu import JumpReLU
from crosscoders.activation_fns.relu import ReLU
from crosscoders.errors import CheckpointError
from crosscoders.hub.formats.files import ForeignFile
from crosscoders.hub.formats.result import Given, Parts
from crosscoders.sources import Source

_ENC, _DEC, _THRESHOLD = "_W_enc_XiDiL", "_W_dec_LXoDo", "log_threshold_L"
_IN, _OUT = "folded_scaling_factors_in_Xi", "folded_scaling_factors_out_Xo"
_KEYS = (_ENC, _DEC, "b_enc_L", "_b_dec_XoDo", "is_folded", _IN, _OUT)


def matches(file: ForeignFile) -> bool:
    """Whether there are crosscode's encoder and decoder."""
    return {_ENC, _DEC} <= set(file.shapes)


def read(file: ForeignFile, given: Given) -> Parts:
    """Translate the file."""
    thresholds = [key for key in file.shapes if key.endswith(f"activation_fn.{_THRESHOLD}")]
    file.check_known(*_KEYS, *thresholds[:1])
    *axes, d_model, n_latents = file.shapes[_ENC]
    if file.shapes[_DEC] != (n_latents, *axes, d_model):
        raise CheckpointError(
            f"{file.path}: reads {axes} of width {d_model} but writes "
            f"{list(file.shapes[_DEC][1:])}; a crosscoder "
            "here writes the sources that it reads."
        )
    file.check_config(d_model=d_model, n_latents=n_latents)
    activation_fn = _activation_fn(file, has_threshold=bool(thresholds))
    state = {"log_threshold": file.weight(thresholds[0], n_latents)} if thresholds else {}
    sources = _sources(file, axes, d_model)
    is_folded = "is_folded" in file.shapes and bool(file.scalar("is_folded"))
    W_dec = file.weight(_DEC).flatten(1)
    return Parts(
        W_enc=file.weight(_ENC).reshape(-1, n_latents).T,
        b_enc=file.weight("b_enc_L", n_latents) if "b_enc_L" in file.shapes else W_dec.new_zeros(n_latents),
        W_dec=W_dec,
        b_dec=(
            file.weight("_b_dec_XoDo", *axes, d_model).flatten()
            if "_b_dec_XoDo" in file.shapes
            else W_dec.new_zeros(W_dec.shape[1])
        ),
        activation_fn=activation_fn,
        sources=sources,
        scale=_folded_scale(file, axes) if is_folded else None,
        is_raw=is_folded,
        activation_state=state,
    )


def _activation_fn(file: ForeignFile, *, has_threshold: bool) -> ActivationFn:
    stated = file.config.get("activation_fn")
    spec = stated if isinstance(stated, dict) else {}
    name, inner = str(spec.get("classname", "")), spec.get("cfg")
    if has_threshold:
        bandwidth = inner.get("bandwidth") if isinstance(inner, dict) else None
        return JumpReLU(bandwidth=float(bandwidth)) if isinstance(bandwidth, int | float) else JumpReLU()
    if name.lower() in ("relu", "reluactivation"):
        return ReLU()
    if "topk" in name.lower() or "groupmax" in name.lower():
        raise CheckpointError(
            f"{file.path}: {name} cannot be represented: it keeps the largest pre-activations "
            "even where they "
            "are negative, and a latent here is never negative."
        )
    raise CheckpointError(
        f"{file.path}: expected activation_fn.classname in the YAML file beside it (ReLU or "
        f"JumpReLU), got {stated!r}."
    )


def _sources(file: ForeignFile, axes: list[int], d_model: int) -> tuple[Source, ...]:
    n_models, n_hooks = (axes[0], axes[1]) if len(axes) == 2 else (1, 1)
    if len(axes) != 2:
        raise CheckpointError(f"{file.path}: expected the axes [model, hook], got {axes}.")
    file.check_config(n_models=n_models, n_hookpoints=n_hooks)
    stated = file.config.get("hookpoints")
    hooks = stated if isinstance(stated, list) and len(stated) == n_hooks else [""] * n_hooks
    return tuple(
        Source(
            name=f"model_{m}" if n_hooks == 1 else f"model_{m}_hook_{h}",
            d_model=d_model,
            hook_name=str(hooks[h]),
        )
        for m in range(n_models)
        for h in range(n_hooks)
    )


def _folded_scale(file: ForeignFile, axes: list[int]) -> tuple[float, ...]:
    read, written = file.weight(_IN, *axes), file.weight(_OUT, *axes)
    if not torch.equal(read, written) or not bool((read > 0).all()):
        raise CheckpointError(
            f"{file.path}: folded scaling factors should be positive and the same for reading "
            "and writing, got "
            f"{read.tolist()} and {written.tolist()}."
        )
    return tuple(read.flatten().tolist())
