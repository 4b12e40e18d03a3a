"""Which latents to look at: both ends of the norm screen, and others like them to compare with."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscoders._typing import typed


@dataclass(frozen=True, kw_only=True)
class ExtremeLatents:
    """Latents of both ends of a ranking, the most extreme first.

    Args:
        top: Latents with the largest values.
        bottom: Latents with the smallest values.
    """

    top: Int[Tensor, " chosen"]
    bottom: Int[Tensor, " _chosen"]


@typed
def extreme_latents(
    nrn: Float[Tensor, " latent"], fired: Bool[Tensor, " latent"], *, n: int = 100
) -> ExtremeLatents:
    """The `n` latents with the largest and the `n` with the smallest NRN among those that fire.

    Both ends are of equal size and share no latent: `n` is lowered to half of those that fire. Ties go to the
    lower latent number.

    Args:
        nrn: Normalized relative norm per latent (`crosscoders.metrics.normalized_decoder_ratio`); NaN where
            undefined.
        fired: Which latents fire.
        n: Latents wanted at each end.

    Returns:
        Latent numbers of both ends, the most extreme first.

    Raises:
        ValueError: `n` below 1, or fewer than two latents that fire and have an NRN.
    """
    if n < 1:
        raise ValueError(f"extreme_latents: n must be at least 1, got {n}.")
    candidates = (fired & ~nrn.isnan()).nonzero().flatten()
    if len(candidates) < 2:
        raise ValueError(
            f"extreme_latents: only {len(candidates)} latents fire and have an NRN; two ends need two."
        )
    n = min(n, len(candidates) // 2)
    values = nrn[candidates]
    ascending = candidates[torch.argsort(values, stable=True)]
    descending = candidates[torch.argsort(values, descending=True, stable=True)]
    bottom = ascending[:n]
    top = descending[~torch.isin(descending, bottom)][:n]
    return ExtremeLatents(top=top, bottom=bottom)


@typed
def frequency_matched(
    frequency: Float[Tensor, " latent"],
    chosen: Int[Tensor, " chosen"],
    pool: Int[Tensor, " _pool"],
    *,
    generator: torch.Generator,
    n_matches: int = 4,
    n_nearest: int = 20,
) -> Int[Tensor, "chosen _match"]:
    """For each chosen latent random ones of nearly its firing frequency.

    Drawn without repeats from the `n_nearest` latents of the pool that are nearest in log frequency; the same
    latent may be drawn for several chosen ones.

    Args:
        frequency: Share of tokens on which each latent fires.
        chosen: Latents to match, all of which fire.
        pool: Latents to draw from, all of which fire; none of them is its own match.
        generator: Draws.
        n_matches: Latents drawn for each chosen one.
        n_nearest: Nearest ones to draw from.

    Returns:
        Latent numbers, one row per chosen latent.

    Raises:
        ValueError: A latent that never fires, or a pool too small.
    """
    if not bool((frequency[torch.cat([chosen, pool])] > 0).all()):
        raise ValueError("frequency_matched: chosen latents and pool must all fire; leave out frequency 0.")
    found = []
    for latent in chosen.tolist():
        others = pool[pool != latent]
        if len(others) < n_matches:
            raise ValueError(
                f"frequency_matched: latent {latent} needs {n_matches} matches, the pool has {len(others)}."
            )
        distance = (frequency[others].double().log() - frequency[latent].double().log()).abs()
        nearest = torch.argsort(distance, stable=True)[: max(n_nearest, n_matches)]
        drawn = torch.randperm(len(nearest), generator=generator)[:n_matches]
        found.append(others[nearest[drawn]])
    return torch.stack(found)
