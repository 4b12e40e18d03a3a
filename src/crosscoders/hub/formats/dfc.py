"""Dedicated Feature Crosscoders (arXiv 2602.11729), in their two layouts.

With masks: W_enc [2, d_model, latent], W_dec [latent, 2, d_model], enc_mask [2, latent], dec_mask
[latent, 2]; the masks are applied in every pass, and TopK ranks by relu(pre) alone. With a partition: the
tensors of dictionary_learning and `_partition_config`; latents [0, a) belong to the first source, [a, a + b)
to the second, and the other source's entries are exactly 0.
"""

import torch
from torch import Tensor

from crosscoders.activation_fns.topk import TopK
from crosscoders.errors import CheckpointError
from crosscoders.hub.formats import ckkissane, dictionary_learning
from crosscoders.hub.formats.files import ForeignFile
from crosscoders.hub.formats.numbers import RULE_NOTE, number_of_latents
from crosscoders.hub.formats.result import Given, Parts
from crosscoders.sources import Source

_KEYS = ("W_enc", "W_dec", "b_enc", "b_dec", "enc_mask", "dec_mask")


def matches(file: ForeignFile) -> bool:
    """Whether there are masks, or dictionary_learning's tensors with a partition."""
    has_masks = {"enc_mask", "dec_mask"} <= set(file.shapes)
    has_partition = dictionary_learning.PARTITION in {*file.extras, *file.config}
    return (ckkissane.has_source_axis(file) and has_masks) or (
        dictionary_learning.has_layer_axis(file) and has_partition
    )


def read(file: ForeignFile, given: Given) -> Parts:
    """Translate the file."""
    return _read_masked(file, given) if "enc_mask" in file.shapes else _read_partitioned(file, given)


def _read_masked(file: ForeignFile, given: Given) -> Parts:
    file.check_known(*_KEYS)
    n_sources, d_model, n_latents = file.shapes["W_enc"]
    file.check_config(activation_dim=d_model, dict_size=n_latents)
    enc_mask, dec_mask = (
        _mask(file, "enc_mask", n_sources, n_latents),
        _mask(file, "dec_mask", n_latents, n_sources),
    )
    W_enc = file.weight("W_enc") * enc_mask[:, None]
    W_dec = file.weight("W_dec") * dec_mask[:, :, None]
    b_enc = file.weight("b_enc", n_latents)
    return Parts(
        W_enc=W_enc.permute(2, 0, 1).flatten(1),
        b_enc=b_enc,
        W_dec=W_dec.flatten(1),
        b_dec=file.weight("b_dec", n_sources, d_model).flatten(),
        activation_fn=TopK(k=number_of_latents(file, given, file.config.get("k"))),
        sources=tuple(Source(name=f"model_{i}", d_model=d_model) for i in range(n_sources)),
        scale=None,
        selection_weight=torch.ones_like(b_enc),
        notes=(RULE_NOTE.format(rule="the pre-activation alone"),),
    )


def _mask(file: ForeignFile, key: str, *shape: int) -> Tensor:
    stored = file.tensor(key)
    if tuple(stored.shape) != shape or not bool(((stored == 0) | (stored == 1)).all()):
        raise CheckpointError(f"{file.path}: {key} should be {shape} of zeros and ones, got {stored.shape}.")
    return stored.to(file.weight("W_enc").dtype)


def _read_partitioned(file: ForeignFile, given: Given) -> Parts:
    n_sources, _, n_latents = file.shapes["encoder.weight"]
    first, second = _partition(file, n_sources, n_latents)
    encoder, decoder = file.weight("encoder.weight"), file.weight("decoder.weight")
    forbidden = [
        *(encoder[1, :, :first], decoder[1, :first]),
        *(encoder[0, :, first : first + second], decoder[0, first : first + second]),
    ]
    if any(bool((part != 0).any()) for part in forbidden):
        raise CheckpointError(
            f"{file.path}: latents that the partition gives to one source ({first} and {second}) "
            "have weights in "
            "the other; they should be exactly 0."
        )
    return dictionary_learning.read(file, given)


def _partition(file: ForeignFile, n_sources: int, n_latents: int) -> tuple[int, int]:
    name = dictionary_learning.PARTITION
    stated = file.extras.get(name, file.config.get(name))
    keys = ("dict_size", "model_a_exclusive", "model_b_exclusive")
    said = [stated.get(key) for key in keys] if isinstance(stated, dict) else []
    values = [value for value in said if isinstance(value, int) and value >= 0]
    if len(values) != len(keys) or n_sources != 2:
        raise CheckpointError(
            f"{file.path}: {name} should state {keys} for two sources, got {stated!r} for {n_sources}."
        )
    if values[0] != n_latents or values[1] + values[2] > n_latents:
        raise CheckpointError(f"{file.path}: {name} says {stated!r}, the tensors have {n_latents} latents.")
    return values[1], values[2]
