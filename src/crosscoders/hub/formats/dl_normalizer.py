"""The activation normalizer of science-of-finetuning/dictionary_learning, folded into weights.

x_norm = (x - mean) * g with one factor g = target_rms / sqrt(sum_d std^2) for each source, undone by
x_norm / (g + 1e-8) + mean. Where all g are 1 though that formula gives another number, the factors were made
per dimension: (x - mean) / (std + 1e-8).
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders.errors import CheckpointError
from crosscoders.hub.formats.files import ForeignFile

KEYS = ("activation_mean", "activation_std", "activation_global_scale", "target_rms")
_EPS = 1e-8
_MEAN_NOTE = (
    "Training subtracted the mean of each source, which is folded into the biases: codes that leave a source "
    "out (own, swap, an export) read its raw activation as zero or rescaled, not as that mean."
)
_PER_DIMENSION_NOTE = (
    "Training divided activations by a standard deviation for each dimension, which no scale of a source can "
    "express: it is folded into the weights, the scale is 1, and the norms of its decoder are those of raw "
    "activations in every space."
)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Normalizer:
    """x_norm = (x - mean) * gain_in and x = x_norm * gain_out + mean; `scale` is g, or 1 if there is none."""

    mean: Float[Tensor, "source d_model"]
    gain_in: Float[Tensor, "source d_model"]
    gain_out: Float[Tensor, "source d_model"]
    scale: tuple[float, ...]
    is_per_dimension: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of results should know of it."""
        return (_MEAN_NOTE, _PER_DIMENSION_NOTE) if self.is_per_dimension else (_MEAN_NOTE,)

    def fold_encoder(self, W_enc: Tensor, b_enc: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder [latent, source, d_model] and bias that read raw activations."""
        raw = W_enc.double() * self.gain_in
        return raw.to(W_enc.dtype), (b_enc.double() - (raw * self.mean).sum(dim=(1, 2))).to(b_enc.dtype)

    def fold_decoder(self, W_dec: Tensor, b_dec: Tensor) -> tuple[Tensor, Tensor]:
        """Decoder [latent, source, d_model] and bias [source, d_model] that write raw activations."""
        bias = b_dec.double() * self.gain_out + self.mean
        return (W_dec.double() * self.gain_out).to(W_dec.dtype), bias.to(b_dec.dtype)


def read_normalizer(file: ForeignFile, n_sources: int, d_model: int) -> Normalizer | None:
    """The file's normalizer, or None if it has none or an unused one (mean or std all NaN).

    Raises:
        CheckpointError: Some of its tensors are missing, partly NaN, or not positive.
    """
    present = [key for key in KEYS if key in file.shapes]
    if not present or present == ["target_rms"]:
        return None
    missing = sorted(set(KEYS[:3]) - set(present))
    if missing:
        raise CheckpointError(f"{file.path}: the normalizer's {missing} are missing; it has {present}.")
    mean, std = (file.tensor(key).double() for key in KEYS[:2])
    if bool(mean.isnan().all()) or bool(std.isnan().all()):
        return None
    mean, std = (file.weight(key).double().reshape(-1) for key in KEYS[:2])
    if mean.numel() != n_sources * d_model or std.numel() != n_sources * d_model or bool((std < 0).any()):
        raise CheckpointError(
            f"{file.path}: activation_mean and activation_std should be [{n_sources}, {d_model}] "
            "with std >= 0."
        )
    mean, std = mean.view(n_sources, d_model), std.view(n_sources, d_model)
    factor = _factor(file, n_sources)
    if _is_per_dimension(file, factor, std):
        return Normalizer(
            mean=mean,
            gain_in=1 / (std + _EPS),
            gain_out=std + _EPS,
            scale=(1.0,) * n_sources,
            is_per_dimension=True,
        )
    gain = factor[:, None].expand_as(mean)
    return Normalizer(
        mean=mean, gain_in=gain, gain_out=1 / (gain + _EPS), scale=tuple(float(g) for g in factor)
    )


def _factor(file: ForeignFile, n_sources: int) -> Tensor:
    factor = file.weight("activation_global_scale").double().reshape(-1)
    if factor.numel() not in (1, n_sources) or not bool((factor > 0).all()):
        raise CheckpointError(
            f"{file.path}: activation_global_scale should be one positive number or {n_sources}, got "
            f"{factor.tolist()}."
        )
    return factor.expand(n_sources)


def _is_per_dimension(file: ForeignFile, factor: Tensor, std: Tensor) -> bool:
    target = file.scalar("target_rms") if "target_rms" in file.shapes else 1.0
    if target != target:  # NaN: unused
        target = 1.0
    expected = target / (std.square().sum(dim=1) + _EPS).sqrt()
    return bool((factor == 1).all()) and not torch.allclose(factor, expected, rtol=1e-4)
