"""The crosscoders of science-of-finetuning/dictionary_learning (crosscoder_learning).

encoder.weight [source, d_model, latent], decoder.weight [source, latent, d_model], encoder.bias [latent],
decoder.bias [source, d_model]. f = relu(pre); with BatchTopK, at inference f * 1[f * w > threshold], with w
by `code_normalization_id`: 1 CROSSCODER sum_s |d^s|, 2 SAE |(d^s)_s|, 3 MIXED a mix of both, 4 NONE 1,
5 DECOUPLED |d^s| in each source. Files without it are CROSSCODER; files without a normalizer read raw
activations.
"""

import torch
from torch import Tensor

from crosscoders.activation_fns.batch_topk import BatchTopK
from crosscoders.activation_fns.relu import ReLU
from crosscoders.errors import CheckpointError
from crosscoders.hub.formats.dl_normalizer import KEYS as NORMALIZER_KEYS
from crosscoders.hub.formats.dl_normalizer import read_normalizer
from crosscoders.hub.formats.files import ForeignFile
from crosscoders.hub.formats.numbers import RULE_NOTE, number_of_latents, threshold_state
from crosscoders.hub.formats.result import Given, Parts
from crosscoders.sources import Source

_KEYS = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias", "code_normalization_id", "k")
_RULES = {1: "CROSSCODER", 2: "SAE", 3: "MIXED", 4: "NONE", 5: "DECOUPLED"}
PARTITION = "_partition_config"


def matches(file: ForeignFile) -> bool:
    """Whether encoder and decoder have three axes in this format's order, and no partition is stated."""
    return has_layer_axis(file) and PARTITION not in {*file.extras, *file.config}


def has_layer_axis(file: ForeignFile) -> bool:
    """Whether the encoder is [source, d_model, latent] and the decoder [source, latent, d_model]."""
    encoder, decoder = file.shapes.get("encoder.weight", ()), file.shapes.get("decoder.weight", ())
    return len(encoder) == 3 and len(decoder) == 3 and (encoder[1], encoder[2]) == (decoder[2], decoder[1])


def read(file: ForeignFile, given: Given) -> Parts:
    """Translate the file."""
    file.check_known(*_KEYS, "threshold", *NORMALIZER_KEYS)
    n_sources, d_model, n_latents = file.shapes["encoder.weight"]
    file.check_config(activation_dim=d_model, dict_size=n_latents, num_layers=n_sources)
    _check_same_sources(file, n_sources)
    rule, notes = _rule(file)
    encoder = file.weight("encoder.weight").permute(2, 0, 1)
    decoder = file.weight("decoder.weight", n_sources, n_latents, d_model).permute(1, 0, 2)
    b_enc, b_dec = file.weight("encoder.bias", n_latents), file.weight("decoder.bias", n_sources, d_model)
    is_topk = bool({"k", "threshold"} & set(file.shapes))
    weight = _selection_weight(file, decoder, rule) if is_topk else None
    normalizer = read_normalizer(file, n_sources, d_model)
    if normalizer is not None:
        encoder, b_enc = normalizer.fold_encoder(encoder, b_enc)
        decoder, b_dec = normalizer.fold_decoder(decoder, b_dec)
    state, unset = _state(file) if is_topk else ({}, ())
    is_per_dimension = normalizer is not None and normalizer.is_per_dimension
    if weight is not None and (rule != "CROSSCODER" or is_per_dimension):
        notes += (RULE_NOTE.format(rule=f"the rule {rule}"),)
    notes += normalizer.notes if normalizer else ()
    return Parts(
        W_enc=encoder.flatten(1),
        b_enc=b_enc,
        W_dec=decoder.flatten(1),
        b_dec=b_dec.flatten(),
        activation_fn=BatchTopK(k=_k(file, given)) if is_topk else ReLU(),
        sources=tuple(Source(name=f"model_{i}", d_model=d_model) for i in range(n_sources)),
        scale=normalizer.scale if normalizer else (1.0,) * n_sources,
        is_raw=normalizer is not None,
        selection_weight=weight if normalizer or rule != "CROSSCODER" else None,
        activation_state=state,
        notes=notes + unset,
    )


def _check_same_sources(file: ForeignFile, n_sources: int) -> None:
    """Raise where the crosscoder writes other sources than it reads, or changes its codes in between."""
    wanted = {
        "encoder_layers": list(range(n_sources)),
        "num_decoder_layers": n_sources,
        "latent_processor": None,
    }
    for name, value in wanted.items():
        if file.config.get(name) not in (None, value):
            raise CheckpointError(
                f"{file.path}: {name}={file.config[name]!r} cannot be represented: a crosscoder "
                "here reads and "
                "writes the same sources, without a step in between."
            )


def _rule(file: ForeignFile) -> tuple[str, tuple[str, ...]]:
    stated = [part.get("code_normalization") or "" for part in (file.config, file.trainer)]
    named = {str(name).rsplit(".", 1)[-1].upper() for name in stated} - {""}
    if "code_normalization_id" in file.shapes:
        rule = _RULES.get(int(file.scalar("code_normalization_id")))
    else:
        rule = min(named, default="CROSSCODER")
    if rule is None or rule not in _RULES.values() or named - {rule}:
        raise CheckpointError(
            f"{file.path}: code_normalization_id says {rule}, the configs {', '.join(sorted(named))}; known "
            f"are {_RULES}."
        )
    if rule == "DECOUPLED":
        raise CheckpointError(
            f"{file.path}: DECOUPLED codes cannot be represented: each source has its own gate, "
            "so one latent has "
            "several activations at a token; a crosscoder here has one."
        )
    is_stated = "code_normalization_id" in file.shapes or named
    return rule, () if is_stated else (
        "No code_normalization_id in the files: CROSSCODER, as older ones are.",
    )


def _selection_weight(file: ForeignFile, decoder: Tensor, rule: str) -> Tensor:
    summed = torch.linalg.vector_norm(decoder, dim=2).sum(dim=1)
    joint = torch.linalg.vector_norm(decoder.flatten(1), dim=1)
    if rule == "NONE":
        return torch.ones_like(summed)
    if rule == "MIXED":
        sae, cc = (_mix(file, f"code_normalization_alpha_{name}") for name in ("sae", "cc"))
        return joint * sae + summed * cc
    return joint if rule == "SAE" else summed


def _mix(file: ForeignFile, name: str) -> float:
    value = file.config.get(name, file.trainer.get(name))
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise CheckpointError(f"{file.path}: MIXED needs {name} >= 0 in a config, got {value!r}.")
    return float(value)


def _k(file: ForeignFile, given: Given) -> int:
    stored = file.scalar("k") if "k" in file.shapes else file.config.get("k", file.trainer.get("k"))
    return number_of_latents(file, given, stored)


def _state(file: ForeignFile) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    return threshold_state(file, file.scalar("threshold") if "threshold" in file.shapes else None)
