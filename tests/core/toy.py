"""Toy crosscoders and data for the tests of the core."""

import torch
from torch import Tensor

from crosscoders.activation_fns import ActivationFn, BatchTopK, JumpReLU, ReLU, TopK
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.losses import (
    AuxK,
    DecoderNormL1,
    JumpReLUL0,
    LossContext,
    LossTerm,
    PreActivation,
    Reconstruction,
    TanhSparsity,
)
from crosscoders.sources import Source

SOURCES = (Source(name="base", d_model=6, scale=0.2), Source(name="distilled", d_model=6, scale=0.8))
ACTIVATION_FNS: list[ActivationFn] = [
    ReLU(),
    TopK(k=3),
    BatchTopK(k=3, threshold_momentum=0.9),
    JumpReLU(),
]
OBJECTIVES: list[tuple[ActivationFn, list[LossTerm]]] = [
    (ReLU(), [Reconstruction(), DecoderNormL1(weight=0.1)]),
    (TopK(k=3), [Reconstruction(), AuxK()]),
    (BatchTopK(k=3), [Reconstruction(), AuxK()]),
    (JumpReLU(), [Reconstruction(), JumpReLUL0(weight=0.1)]),
    (JumpReLU(), [Reconstruction(), TanhSparsity(weight=0.1), PreActivation(weight=0.01)]),
]


def kind_of(value: object) -> str:
    """Readable test ids."""
    if isinstance(value, ActivationFn):
        return value.kind
    return "+".join(term.name for term in value) if isinstance(value, list) else repr(value)


def toy_crosscoder(activation_fn: ActivationFn, *, n_latents: int = 32, seed: int = 0) -> Crosscoder:
    """A crosscoder over two sources of width 6 with different scales, biases and unequal norms."""
    generator = torch.Generator().manual_seed(seed)
    config = CrosscoderConfig(
        sources=SOURCES, n_latents=n_latents, activation_fn=activation_fn, decoder_init_norm=0.5
    )
    crosscoder = Crosscoder(config, generator=generator)
    with torch.no_grad():
        crosscoder.b_enc.normal_(std=0.1, generator=generator)
        crosscoder.b_dec.normal_(std=0.1, generator=generator)
        stretch = 2 * torch.rand(n_latents, 2, generator=generator) + 0.1
        crosscoder.W_dec.mul_(stretch.repeat_interleave(6, dim=1))
    return crosscoder


def toy_rows(n_rows: int = 64, *, seed: int = 1) -> Tensor:
    """Raw activations: few of 20 hidden directions at a time, larger in the first source."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(20, 12, generator=torch.Generator().manual_seed(7))
    codes = torch.rand(n_rows, 20, generator=generator)
    codes = codes * (torch.rand(n_rows, 20, generator=generator) < 0.2)
    scale = torch.tensor([5.0] * 6 + [1.25] * 6)
    return (codes @ directions + 0.05 * torch.randn(n_rows, 12, generator=generator)) * scale


def context(*, n_latents: int = 32, dead: int = 5) -> LossContext:
    """A context whose first latents are dead."""
    mask = torch.zeros(n_latents, dtype=torch.bool)
    mask[:dead] = True
    return LossContext(progress=0.5, step=3, dead_mask=mask)
