"""A planted world, and the crosscoder that reads and writes exactly what was planted."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from crosscoders.activation_fns import ReLU
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.diffing.batches import MeasureBatch
from crosscoders.diffing.measures.alignment import Alignment, alignment
from crosscoders.diffing.planted import PlantedConfig, PlantedCounts, PlantedWorld

RATES = (0.08, 0.02)
COUNTS = PlantedCounts(n_shared=16, n_exclusive=4, n_reused=4, n_rotated=4, n_rescaled=2)


@functools.cache
def known_world(d_models: tuple[int, int]) -> PlantedWorld:
    """44 features in two sources that have room for all of them; sources of one width have one space."""
    config = PlantedConfig(
        d_models=d_models, counts=COUNTS, rates=RATES, shared_rates=(0.02, 0.06), noise=0.02, hierarchy=0.0
    )
    world = PlantedWorld.make(config, generator=torch.Generator().manual_seed(0))
    if d_models[0] != d_models[1]:
        return world
    assert world.maps is not None
    first, second = world.directions
    return dataclasses.replace(world, directions=(first, second @ world.maps[1]))  # an isometry undone


def known_crosscoder(world: PlantedWorld, *, extra: Tensor | None = None) -> Crosscoder:
    """One latent per planted feature: decoder its directions, encoder their pseudo-inverse.

    Args:
        world: The world.
        extra: More decoder rows, in raw space, of latents that never fire.
    """
    rows = torch.cat(world.directions, dim=1)
    readout = torch.linalg.pinv(rows).T
    n_more = 0 if extra is None else len(extra)
    config = CrosscoderConfig(sources=world.sources(), n_latents=len(rows) + n_more, activation_fn=ReLU())
    crosscoder = Crosscoder(config)
    scale = torch.cat([torch.full((s.d_model,), s.scale) for s in world.sources()])
    with torch.no_grad():
        crosscoder.W_dec.zero_()
        crosscoder.W_enc.zero_()
        crosscoder.W_dec[: len(rows)] = rows * scale
        crosscoder.W_enc[: len(rows)] = readout / scale
        crosscoder.b_enc.fill_(-0.25)
        if extra is not None:
            crosscoder.W_dec[len(rows) :] = extra * scale
    return crosscoder.eval()


def held_out(world: PlantedWorld, n_tokens: int = 64 * 320) -> Callable[[], Iterator[MeasureBatch]]:
    """The same held-out rows at each call."""

    def again() -> Iterator[MeasureBatch]:
        found = world.measure_batches(n_tokens, generator=torch.Generator().manual_seed(1))
        return (batch for batch, _ in found)

    return again


def aligned(world: PlantedWorld, *, is_permuted: bool = False) -> Alignment:
    """Whether the rows of both sources belong together, perhaps after those of the second were permuted."""
    first = world.config.d_models[0]

    def batches() -> Iterator[MeasureBatch]:
        for batch in held_out(world, 64 * 64)():
            order = torch.randperm(len(batch.rows), generator=torch.Generator().manual_seed(2))
            second = batch.rows[order if is_permuted else slice(None), first:]
            yield MeasureBatch(
                rows=torch.cat([batch.rows[:, :first], second], dim=1), sequence=batch.sequence
            )

    return alignment(batches(), world.sources(), generator=torch.Generator().manual_seed(0))
