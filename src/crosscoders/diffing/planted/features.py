"""Which features a planted world has: kind, rate, owner, and what each depends on."""

import math
from dataclasses import dataclass, replace

import torch

from crosscoders._typing import typed
from crosscoders.diffing.planted.config import KINDS, Kind, PlantedConfig

KNOWN_RATE_MIN = 0.005  # a re-used direction belongs to a shared feature that a crosscoder can learn
CHILD_RATE_MAX = 0.005
PARENT_RATE_MIN = 0.02


@dataclass(frozen=True, kw_only=True)
class PlantedFeature:
    """What is true of one planted feature.

    Args:
        kind: What it is.
        rate: Share of tokens on which it is on.
        owner: Source that alone has it (exclusive, reused) or has it at full strength (rescaled); None for
            the other kinds.
        known_as: Number of the shared feature whose direction a reused one writes; None for other kinds.
        group: Group of features with which it tends to be on.
        parent: Number of the feature without which it is never on, if there is one.
    """

    kind: Kind
    rate: float
    owner: int | None = None
    known_as: int | None = None
    group: int = 0
    parent: int | None = None


@typed
def draw_features(config: PlantedConfig, *, generator: torch.Generator) -> tuple[PlantedFeature, ...]:
    """Draw the features of a world: shared ones first, then rate by rate and kind by kind.

    Args:
        config: How many of each.
        generator: Source of randomness, on the CPU.

    Returns:
        One record per feature.

    Raises:
        ValueError: Fewer shared features of rate 0.5% or more than reused ones, or no feature of rate 2% or
            more for `hierarchy` to depend on.
    """
    features = [*_shared(config, generator), *_of_base_rates(config)]
    features = _name_known(features, generator)
    groups = torch.randint(config.n_groups, (len(features),), generator=generator).tolist()
    features = [replace(feature, group=group) for feature, group in zip(features, groups)]
    return tuple(_name_parents(features, config.hierarchy, generator))


def _shared(config: PlantedConfig, generator: torch.Generator) -> list[PlantedFeature]:
    """Shared features with log-uniform rates."""
    low, high = (math.log(rate) for rate in config.shared_rates)
    drawn = torch.rand(config.counts.n_shared, generator=generator, dtype=torch.float64)
    return [PlantedFeature(kind="shared", rate=math.exp(low + (high - low) * u)) for u in drawn.tolist()]


def _of_base_rates(config: PlantedConfig) -> list[PlantedFeature]:
    """Features of the other kinds; owners take turns, so that every source is planted into alike."""
    return [
        PlantedFeature(kind=kind, rate=rate, owner=None if kind == "rotated" else i % len(config.d_models))
        for rate in config.rates
        for kind in KINDS
        for i in range(config.counts.per_rate(kind))
    ]


def _name_known(features: list[PlantedFeature], generator: torch.Generator) -> list[PlantedFeature]:
    """Give each reused feature a shared one of its own."""
    pool = [i for i, f in enumerate(features) if f.kind == "shared" and f.rate >= KNOWN_RATE_MIN]
    n_reused = sum(feature.kind == "reused" for feature in features)
    if n_reused > len(pool):
        raise ValueError(
            f"PlantedWorld: {n_reused} reused features need as many shared ones of rate {KNOWN_RATE_MIN:.1%} "
            f"or more, got {len(pool)}; raise n_shared or lower n_reused."
        )
    order = iter(torch.randperm(len(pool), generator=generator).tolist())
    return [replace(f, known_as=pool[next(order)]) if f.kind == "reused" else f for f in features]


def _name_parents(
    features: list[PlantedFeature], hierarchy: float, generator: torch.Generator
) -> list[PlantedFeature]:
    """Make a share of the rare features depend on frequent ones."""
    parents = [i for i, feature in enumerate(features) if feature.rate >= PARENT_RATE_MIN]
    is_child = (torch.rand(len(features), generator=generator) < hierarchy).tolist()
    is_child = [child and f.rate <= CHILD_RATE_MAX for child, f in zip(is_child, features)]
    if any(is_child) and not parents:
        raise ValueError(
            f"PlantedWorld: hierarchy={hierarchy} needs features of rate {PARENT_RATE_MIN:.0%} or more to "
            "depend on and there are none; pass hierarchy=0.0 or add such a rate."
        )
    drawn = torch.randint(max(len(parents), 1), (len(features),), generator=generator).tolist()
    return [replace(f, parent=parents[d]) if c else f for f, c, d in zip(features, is_child, drawn)]
