"""Crosscoders that are held to a structure, and what that means in plain loops."""

import torch
from torch import Tensor

from crosscoders.activation_fns import ActivationFn, TopK
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.sources import Source
from crosscoders.structures import DedicatedLatents, SharedLatents, Structure

N_LATENTS = 24
EQUAL = tuple(Source(name=f"s{i}", d_model=5, scale=0.3 * (i + 1)) for i in range(3))
UNEQUAL = tuple(Source(name=f"s{i}", d_model=3 + 2 * i, scale=0.3 * (i + 1)) for i in range(3))
SHARED = SharedLatents(n_shared=7)
DEDICATED = DedicatedLatents(n_per_source=(2, 0, 5))
CASES: list[tuple[Structure, tuple[Source, ...]]] = [
    (SHARED, EQUAL[:2]),
    (SHARED, EQUAL),
    (DedicatedLatents(n_per_source=(3, 4)), UNEQUAL[:2]),
    (DEDICATED, UNEQUAL),
]


def case_name(value: Structure | tuple[Source, ...]) -> str:
    """Readable test ids."""
    return value.kind if isinstance(value, Structure) else f"{len(value)} sources"


def held_crosscoder(
    structure: Structure | None, sources: tuple[Source, ...], *, activation_fn: ActivationFn | None = None
) -> Crosscoder:
    """A small crosscoder with this structure."""
    return Crosscoder(
        CrosscoderConfig(
            sources=sources,
            n_latents=N_LATENTS,
            activation_fn=activation_fn or TopK(k=4),
            decoder_init_norm=0.5,
            structure=structure,
        ),
        generator=torch.Generator().manual_seed(3),
    )


def slices_of(weight: Tensor, latent: int, sources: tuple[Source, ...]) -> list[Tensor]:
    """The part of one latent's row in each source."""
    return list(weight.detach()[latent].split([source.d_model for source in sources]))


def assert_held(crosscoder: Crosscoder) -> None:
    """The structure holds to the last bit; in plain loops over latents and sources."""
    structure, sources = crosscoder.config.structure, crosscoder.sources
    if isinstance(structure, SharedLatents):
        for latent in range(structure.n_shared):
            first, *others = slices_of(crosscoder.W_dec, latent, sources)
            assert all(torch.equal(first, other) for other in others), latent
            assert first.any()
        return
    assert isinstance(structure, DedicatedLatents)
    owners = [s for s, n in enumerate(structure.n_per_source) for _ in range(n)]
    for latent, owner in enumerate(owners):
        for weight in (crosscoder.W_enc, crosscoder.W_dec):
            for s, part in enumerate(slices_of(weight, latent, sources)):
                assert bool(part.any()) == (s == owner), (latent, s)


def held_rows(n_rows: int, sources: tuple[Source, ...], *, seed: int = 1) -> Tensor:
    """Raw activations with a few hidden directions at a time."""
    generator = torch.Generator().manual_seed(seed)
    d = sum(source.d_model for source in sources)
    directions = torch.randn(20, d, generator=torch.Generator().manual_seed(7))
    codes = torch.rand(n_rows, 20, generator=generator)
    codes = codes * (torch.rand(n_rows, 20, generator=generator) < 0.2)
    return codes @ directions + 0.05 * torch.randn(n_rows, d, generator=generator)
