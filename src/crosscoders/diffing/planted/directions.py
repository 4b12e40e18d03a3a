"""The direction of each planted feature in each source, and the linear maps between sources."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.diffing.planted.config import PlantedConfig
from crosscoders.diffing.planted.features import PlantedFeature

_COMMON_DIMENSIONS = 8  # of the subspace that `overlap` mixes in: far fewer than any width in use


@typed
def random_isometry(d_in: int, d_out: int, *, generator: torch.Generator) -> Float[Tensor, "_d_out _d_in"]:
    """A uniformly random linear map that keeps lengths, or a projection where `d_out` is the smaller.

    Args:
        d_in: Width that it takes.
        d_out: Width that it gives.
        generator: Source of randomness, on the CPU.

    Returns:
        The matrix `M` with `y = M x`; its columns are orthonormal, or its rows where it projects.
    """
    wide, narrow = max(d_in, d_out), min(d_in, d_out)
    q, r = torch.linalg.qr(torch.randn(wide, narrow, generator=generator, dtype=torch.float64))
    q = (q * r.diagonal().sign()).float()
    return q if d_out >= d_in else q.T.contiguous()


@typed
def random_directions(
    n: int, d_model: int, *, overlap: float = 0.0, generator: torch.Generator
) -> Float[Tensor, "_feature _d_model"]:
    """Random unit vectors: isotropic, or with a part in a common subspace of a few dimensions.

    With `overlap` a direction is `unit((1 - overlap) u + overlap v)` of an isotropic unit vector `u` and one
    `v` of the subspace, so that directions lie nearer to each other.

    Args:
        n: How many.
        d_model: Their width.
        overlap: Weight of the common part, in [0, 1).
        generator: Source of randomness, on the CPU.

    Returns:
        One direction per row.
    """
    own = _unit(torch.randn(n, d_model, generator=generator))
    if overlap == 0:
        return own
    n_common = min(_COMMON_DIMENSIONS, d_model)
    basis = random_isometry(n_common, d_model, generator=generator)
    common = _unit(torch.randn(n, n_common, generator=generator)) @ basis.T
    return _unit((1 - overlap) * own + overlap * common)


@typed
def draw_maps(
    config: PlantedConfig, *, generator: torch.Generator
) -> tuple[Float[Tensor, "_d_out _d_in"], ...] | None:
    """The map from the first source to each source, or None if the config asks for none.

    Args:
        config: Widths.
        generator: Source of randomness, on the CPU.

    Returns:
        One matrix per source; the first is the identity.
    """
    if not config.linear_map:
        return None
    first, *others = config.d_models
    drawn = [random_isometry(first, d_model, generator=generator) for d_model in others]
    return (torch.eye(first), *drawn)


@typed
def draw_directions(
    config: PlantedConfig,
    *,
    features: Sequence[PlantedFeature],
    maps: Sequence[Float[Tensor, "_ _"]] | None,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "_feature _d_model"], ...]:
    """What each feature adds to each source at activation 1.

    Args:
        config: Widths, rescaling and overlap.
        features: The features, of which reused ones name a shared one.
        maps: The map from the first source to each, or None.
        generator: Source of randomness, on the CPU.

    Returns:
        One `[feature, d_model]` matrix per source; rows of length 1, `rescale` or 0. Where a map projects
        onto a narrower source, images are brought back to length 1.
    """
    n = len(features)
    own = [
        random_directions(n, d_model, overlap=config.overlap, generator=generator)
        for d_model in config.d_models
    ]
    mapped = own if maps is None else [_unit(own[0] @ matrix.T) for matrix in maps]
    follows_map = torch.tensor([feature.kind in ("shared", "rescaled") for feature in features])
    shown = torch.tensor([i if f.known_as is None else f.known_as for i, f in enumerate(features)])
    strengths = _strengths(config, features)
    return tuple(
        torch.where(follows_map[:, None], image, unrelated)[shown] * strength[:, None]
        for image, unrelated, strength in zip(mapped, own, strengths)
    )


def _strengths(config: PlantedConfig, features: Sequence[PlantedFeature]) -> list[Tensor]:
    """Length of each feature's direction, per source."""
    elsewhere = {"exclusive": 0.0, "reused": 0.0, "rescaled": config.rescale}
    return [
        torch.tensor([1.0 if f.owner in (None, source) else elsewhere[f.kind] for f in features])
        for source in range(len(config.d_models))
    ]


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)
