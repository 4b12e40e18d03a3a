"""Sets of latents to ablate, and the controls that are like them in everything but one respect."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.harvest import ModelSources
from crosscoders.interventions.ablation.codes import read_codes
from crosscoders.interventions.ablation.occurrences import Occurrences, occurrence_batches
from crosscoders.sources import column_slices


@typed
def threshold_set(
    nrn: Float[Tensor, " latent"],
    frequency: Float[Tensor, " latent"],
    *,
    top_percent: int | float,
    nrn_above: int | float = 0.5,
    of: Literal["all", "thresholded"] = "all",
) -> Int[Tensor, " chosen"]:
    """Latents above an NRN that are also among the most frequent ones (Baek & Tegmark 2025).

    {j : NRN_j > nrn_above and frequency_j among the top_percent % largest}, the percentage being one of the
    latents that fire, rounded up. A threshold of 0.5 takes about half of all *shared* latents too.

    Args:
        nrn: NRN of each latent (`crosscoders.metrics.normalized_decoder_ratio`); NaN is never selected.
        frequency: Share of tokens on which each fires.
        top_percent: Above 0, at most 100.
        nrn_above: Threshold, itself not selected.
        of: Whether "the most frequent" are so among all latents, or among those above the threshold.

    Returns:
        Their numbers, ascending; possibly none.

    Raises:
        ValueError: A percentage or threshold out of range, or frequencies that are none.
    """
    if not 0 < top_percent <= 100:
        raise ValueError(
            f"threshold_set: top_percent must lie above 0 and at most at 100, got {top_percent}."
        )
    if not 0 <= nrn_above <= 1:
        raise ValueError(f"threshold_set: nrn_above must lie in [0, 1], got {nrn_above}.")
    _check_frequency("threshold_set", frequency)
    fires, above = frequency > 0, nrn > nrn_above
    pool = (fires if of == "all" else fires & above).nonzero().flatten()
    n = math.ceil(round(top_percent * len(pool) / 100, 9))  # 5% of 1,000 is 50, not 50.000000000000007
    most = pool[torch.argsort(frequency[pool], descending=True, stable=True)[:n]]
    return most[above[most]].sort().values


@torch.no_grad()
@typed
def target_energy(
    crosscoder: Crosscoder,
    sources: ModelSources,
    tokens: Int[Tensor, "held_out pos"],
    occurrences: Occurrences,
    *,
    batch_size: int = 32,
) -> Float[Tensor, "latent source"]:
    """How much each latent writes into each source's stream where the targets are predicted.

    energy_j^s = ||d_j^s||^2 * sum over occurrences of f_j^2, with the code f_j at the position before the
    target and the decoder norms in normalized space.

    Args:
        crosscoder: Used in evaluation mode.
        sources: The models.
        tokens: The text.
        occurrences: Targets in it.
        batch_size: Rows that go through the models together.

    Returns:
        One figure per latent and source, in float64; 0 for a latent that fires at none of these positions.
    """
    squares = torch.zeros(crosscoder.n_latents, dtype=torch.float64)
    for batch in occurrence_batches(tokens, occurrences, batch_size=batch_size):
        activations = sources.harvest(batch.tokens)
        codes = read_codes(crosscoder, activations[torch.arange(len(batch.read)), batch.read])
        squares.index_add_(0, codes.indices.cpu(), codes.values.double().square().cpu())
    return squares[:, None] * crosscoder.decoder_norms(p=2).double().square().cpu()


@dataclass(frozen=True, kw_only=True)
class MatchedSets:
    """Control sets, and how well each matches; one entry per draw.

    Args:
        draws: Latents of each control.
        n_unmatched: Latents of the set for which no acceptable partner was left.
        frequency_ratio: Summed frequency of the control over that of the set.
        energy_ratio: Summed energy of the control over that of the set; NaN where the set has none.
    """

    draws: tuple[Int[Tensor, " _"], ...]
    n_unmatched: tuple[int, ...]
    frequency_ratio: tuple[float, ...]
    energy_ratio: tuple[float, ...]


@typed
def matched_random_sets(
    latents: Int[Tensor, " chosen"],
    *,
    frequency: Float[Tensor, " latent"],
    energy: Float[Tensor, " latent"],
    n_draws: int,
    generator: torch.Generator,
    n_nearest: int = 5,
    max_ratio: int | float = 4.0,
) -> MatchedSets:
    """Random latents outside a set that fire as often as its latents and write as much at the targets.

    Each latent of the set, the one of most energy first, gets a partner drawn at random among the `n_nearest`
    free ones, by Euclidean distance in (log frequency, log energy). A partner is acceptable if neither
    differs by more than a factor `max_ratio`; latents without energy go with latents without energy. Within
    a draw no latent is used twice. A latent without an acceptable partner gets none, and is counted.

    Args:
        latents: The set.
        frequency: Share of tokens on which each latent fires; those that never do are no partners.
        energy: `target_energy` in the source in which the control is to be compared with the set. A match
            in one source is none in another: partners of latents of high NRN differ from them in the base.
        n_draws: Control sets to draw.
        generator: Source of randomness, on the CPU.
        n_nearest: Candidates among which a partner is drawn.
        max_ratio: Largest acceptable ratio of frequencies and of energies.

    Returns:
        The draws and how well they match.

    Raises:
        ValueError: A latent that does not exist or is named twice, a count below 1, a ratio below 1, or
            frequencies or energies that are none.
    """
    check_latents("matched_random_sets", latents, n_latents=len(frequency))
    if n_draws < 1 or n_nearest < 1 or not max_ratio >= 1:
        raise ValueError(
            "matched_random_sets: n_draws, n_nearest and max_ratio must be at least 1, got "
            f"{n_draws}, {n_nearest} and {max_ratio}."
        )
    _check_frequency("matched_random_sets", frequency)
    if not bool((energy.isfinite() & (energy >= 0)).all()):
        raise ValueError("matched_random_sets: energies must be finite and not negative.")
    frequency, energy = frequency.double(), energy.double()
    free = frequency > 0
    free[latents] = False
    draws = tuple(
        _draw(latents, free, frequency, energy, generator=generator, n_nearest=n_nearest, max_ratio=max_ratio)
        for _ in range(n_draws)
    )
    return MatchedSets(
        draws=draws,
        n_unmatched=tuple(len(latents) - len(draw) for draw in draws),
        frequency_ratio=tuple(float(frequency[draw].sum() / frequency[latents].sum()) for draw in draws),
        energy_ratio=tuple(float(energy[draw].sum() / energy[latents].sum()) for draw in draws),
    )


def _draw(
    latents: Tensor,
    free: Tensor,
    frequency: Tensor,
    energy: Tensor,
    *,
    generator: torch.Generator,
    n_nearest: int,
    max_ratio: int | float,
) -> Tensor:
    free, partners, limit = free.clone(), [], math.log(max_ratio) * (1 + 1e-9)
    for latent in latents[torch.argsort(energy[latents], descending=True, stable=True)].tolist():
        by_frequency = (frequency.log() - frequency[latent].log()).abs()
        by_energy = _log_distance(energy, energy[latent])
        acceptable = (free & (by_frequency <= limit) & (by_energy <= limit)).nonzero().flatten()
        if len(acceptable) == 0:
            continue
        distance = torch.hypot(by_frequency[acceptable], by_energy[acceptable])
        nearest = acceptable[torch.argsort(distance, stable=True)[:n_nearest]]
        partner = int(nearest[torch.randint(len(nearest), (1,), generator=generator)])
        free[partner] = False
        partners.append(partner)
    return torch.tensor(sorted(partners), dtype=torch.int64)


def _log_distance(energy: Tensor, own: Tensor) -> Tensor:
    """|log energy - log own|; 0 between two without energy, infinite between one with and one without."""
    if own == 0:
        return torch.where(energy == 0, 0.0, torch.inf).double()
    return (energy.log() - own.log()).abs()


@torch.no_grad()
@typed
def shuffled_identity(
    crosscoder: Crosscoder,
    latents: Int[Tensor, " chosen"],
    *,
    frequency: Float[Tensor, " latent"],
    generator: torch.Generator,
) -> Float[Tensor, "chosen width"]:
    """Decoder rows of random other latents in place of a set's own, of the same norm in every source.

    Used with the set's own codes, these rows edit the same tokens with the same strength in other
    directions: only the identity of the latents changes. The others are drawn among `identity_donors`,
    without replacement; with replacement if there are fewer of them than latents in the set.

    Args:
        crosscoder: Where the rows come from.
        latents: The set.
        frequency: Share of tokens on which each latent fires.
        generator: Source of randomness, on the CPU.

    Returns:
        One row per latent of the set, in the space in which the crosscoder stores its decoder.

    Raises:
        ValueError: A latent that does not exist or is named twice, or no donor for a set that has latents.
    """
    donors = identity_donors(crosscoder, latents, frequency=frequency)
    if len(donors) == 0 and len(latents) > 0:
        raise ValueError(
            f"shuffled_identity: beside the {len(latents)} latents of the set no other latent fires and has "
            "a direction in every source; take a smaller set."
        )
    if len(donors) < len(latents):
        chosen = torch.randint(len(donors), (len(latents),), generator=generator)
    else:
        chosen = torch.randperm(len(donors), generator=generator)[: len(latents)]
    donors, norms = donors[chosen], crosscoder.decoder_norms(p=2).cpu()
    rows = crosscoder.W_dec.detach()[donors].clone()
    for at, columns in enumerate(column_slices(crosscoder.sources).values()):
        rows[:, columns] *= (norms[latents, at] / norms[donors, at])[:, None].to(rows)
    return rows


@torch.no_grad()
@typed
def identity_donors(
    crosscoder: Crosscoder, latents: Int[Tensor, " chosen"], *, frequency: Float[Tensor, " latent"]
) -> Int[Tensor, " _"]:
    """Latents outside a set that fire and have a direction in every source: `shuffled_identity` draws them.

    Args:
        crosscoder: Where the directions come from.
        latents: The set.
        frequency: Share of tokens on which each latent fires.

    Returns:
        Their numbers, ascending; possibly none.

    Raises:
        ValueError: A latent that does not exist or is named twice, or frequencies that are none.
    """
    check_latents("identity_donors", latents, n_latents=crosscoder.n_latents)
    _check_frequency("identity_donors", frequency)
    is_donor = (frequency > 0) & (crosscoder.decoder_norms(p=2).cpu() > 0).all(dim=1)
    is_donor[latents] = False
    return is_donor.nonzero().flatten()


def check_latents(where: str, latents: Tensor, *, n_latents: int) -> None:
    """Check that a set names latents that exist, each once.

    Args:
        where: Start of the message.
        latents: The set.
        n_latents: Latents of the crosscoder.

    Raises:
        ValueError: One does not exist or is named twice.
    """
    outside = latents[(latents < 0) | (latents >= n_latents)].tolist()
    if outside:
        raise ValueError(f"{where}: latents {outside[:8]} are outside 0..{n_latents - 1}.")
    if len(latents.unique()) != len(latents):
        raise ValueError(f"{where}: {len(latents) - len(latents.unique())} latents are named more than once.")


def _check_frequency(where: str, frequency: Tensor) -> None:
    if not bool(((frequency >= 0) & (frequency <= 1)).all()):
        raise ValueError(
            f"{where}: frequencies must lie in [0, 1], got {frequency.min()} to {frequency.max()}."
        )
