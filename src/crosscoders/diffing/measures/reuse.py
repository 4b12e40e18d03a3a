"""Direction re-use: does a latent write, in a new context, a direction that the models already know?

A distilled model may fire a known feature where its base did not. Such a latent is silent in the base when
it fires, and passes every test that looks only there; but its direction is one that both models have. It is
looked for among the decoder rows of the *same* source, so no common space is needed.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.diffing.measures.free_direction import FreeDirection
from crosscoders.diffing.measures.moments import (
    Moments,
    check_moments,
    normalized_weights,
)
from crosscoders.diffing.measures.twins import best_other
from crosscoders.sources import column_slices

_LATENTS_AT_ONCE = 1024  # bounds the matrix of cosines with all latents


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Reuse:
    """Nearest known direction to each latent's fitted direction, by source [chosen 2].

    Args:
        latents: Number of each latent in the crosscoder.
        pair: Names of the two sources.
        cosine: Best cosine of U^s with the same source's decoder row of another known latent; NaN if none.
        known: Number of that latent; -1 if none.
        cross_cosine: Best cosine of U^s with the *other* source's decoder row of another known latent; None
            for unequal widths.
        cross_known: Number of that latent; None for unequal widths.
    """

    latents: Int[Tensor, " chosen"]
    pair: tuple[str, str]
    cosine: Float[Tensor, "chosen 2"]
    known: Int[Tensor, "chosen 2"]
    cross_cosine: Float[Tensor, "chosen 2"] | None
    cross_known: Int[Tensor, "chosen 2"] | None


@typed
def reuse(
    moments: Moments, crosscoder: Crosscoder, *, free: FreeDirection, known: Bool[Tensor, " latent"]
) -> Reuse:
    """Best cosine of each fitted direction with the directions that both models have.

    The cosine is signed: latents are not negative, so that the opposite direction is another one. Noise in
    U lowers it, the more the rarer the latent.

    Args:
        moments: From `collect_moments` with this crosscoder.
        crosscoder: The crosscoder.
        free: From `free_direction` with these moments; its pair is compared.
        known: Latents that both sources have, such as those judged shared or re-scaled; latents that never
            fired count as unknown in any case.

    Returns:
        Cosines and the numbers of the known latents.

    Raises:
        ValueError: Moments of another crosscoder, or a fit of other latents.
    """
    check_moments(moments, crosscoder, where="reuse")
    if not torch.equal(free.latents, moments.latents):
        raise ValueError(
            f"reuse: the fit has {len(free.latents)} latents, the moments have {len(moments.latents)}, or "
            "others; call free_direction with these moments."
        )
    W_dec = normalized_weights(crosscoder)[0].cpu()
    columns = [column_slices(moments.sources)[name] for name in free.pair]
    allowed = moments.is_live & known.cpu()
    own = [_nearest(u, W_dec[:, at], moments.latents, allowed) for u, at in zip(free.directions, columns)]
    cross = None
    if free.directions[0].shape == free.directions[1].shape:
        swapped = zip(free.directions, reversed(columns), strict=True)
        cross = [_nearest(u, W_dec[:, at], moments.latents, allowed) for u, at in swapped]
    return Reuse(
        latents=moments.latents,
        pair=free.pair,
        cosine=torch.stack([cosine for cosine, _ in own], dim=1),
        known=torch.stack([number for _, number in own], dim=1),
        cross_cosine=None if cross is None else torch.stack([cosine for cosine, _ in cross], dim=1),
        cross_known=None if cross is None else torch.stack([number for _, number in cross], dim=1),
    )


def _nearest(directions: Tensor, decoder: Tensor, latents: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    unit = decoder / decoder.norm(dim=1, keepdim=True)
    found = []
    for at in torch.arange(len(latents)).split(_LATENTS_AT_ONCE):
        cosines = (directions[at] / directions[at].norm(dim=1, keepdim=True)) @ unit.T
        found.append(best_other(cosines, latents=latents[at], allowed=allowed))
    cosine, number = zip(*found, strict=True)
    return torch.cat(cosine), torch.cat(number)
