"""A planted world: activations of several sources with features whose truth is known."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.diffing.batches import MeasureBatch
from crosscoders.diffing.planted.config import PlantedConfig
from crosscoders.diffing.planted.directions import draw_directions, draw_maps
from crosscoders.diffing.planted.features import PlantedFeature, draw_features
from crosscoders.diffing.planted.firing import Firing
from crosscoders.sources import Source, scale_from_mean_norm

SEQUENCE_TOKENS = 64  # tokens are independent; rows count as a sequence only so that measures have blocks
_NORM_TOKENS = 16_384  # for the mean norm: its standard error is then well under 1%


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class PlantedWorld:
    """Synthetic activations of several sources, side by side, and what is true of them.

    A row is `x^s = sum_i a_i d_i^s + noise` for each source `s`, with activations `a` of the planted features
    and their directions `d`. Train a crosscoder on `sample`'s rows and ask which features it found and what
    it is said to have found them to be.

    Args:
        config: How it was drawn.
        features: What is true of each feature.
        directions: What each feature adds to each source at activation 1, `[feature, d_model]` per source.
        maps: Map from the first source to each, or None if the sources have none in common.
        mean_norms: Mean norm of each source's activations, noise included.
        noise_std: Standard deviation of each source's noise, per coordinate.
    """

    config: PlantedConfig
    features: tuple[PlantedFeature, ...]
    directions: tuple[Tensor, ...]
    maps: tuple[Tensor, ...] | None
    mean_norms: tuple[float, ...]
    noise_std: tuple[float, ...]

    @classmethod
    @typed
    def make(cls, config: PlantedConfig, *, generator: torch.Generator) -> "PlantedWorld":
        """Draw a world.

        Args:
            config: How to draw it.
            generator: Source of randomness, on the CPU; the same state gives the same world.

        Returns:
            The world.

        Raises:
            ValueError: The config asks for more reused features than shared ones can lend directions, or
                for a hierarchy without frequent features.
        """
        features = draw_features(config, generator=generator)
        maps = draw_maps(config, generator=generator)
        directions = draw_directions(config, features=features, maps=maps, generator=generator)
        firing = Firing(features, correlation=config.correlation, n_groups=config.n_groups)
        activations = firing.sample(_NORM_TOKENS, generator=generator)
        bare = [(activations @ rows).norm(dim=1) for rows in directions]
        noise = [config.noise * float(norms.mean()) for norms in bare]
        return cls(
            config=config,
            features=features,
            directions=directions,
            maps=maps,
            mean_norms=tuple(float(norms.hypot(torch.tensor(n)).mean()) for norms, n in zip(bare, noise)),
            noise_std=tuple(n / math.sqrt(d_model) for n, d_model in zip(noise, config.d_models)),
        )

    @typed
    def sample(
        self, n_tokens: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "batch _feature"]]:
        """Draw tokens, independent of each other.

        Args:
            n_tokens: Number of tokens.
            generator: Source of randomness, on the CPU.

        Returns:
            Raw activations of all sources side by side, and the activation of each planted feature.
        """
        activations = self._firing.sample(n_tokens, generator=generator)
        rows = torch.randn(n_tokens, len(self._noise), generator=generator).mul_(self._noise)
        return rows.addmm_(activations, self._flat), activations

    @typed
    def sources(self, names: Sequence[str] = ("base", "distilled")) -> tuple[Source, ...]:
        """Sources for a crosscoder config, with the scales of this world's mean norms.

        Args:
            names: One name per source.

        Returns:
            The sources in the order of their columns.

        Raises:
            ValueError: Not one name per source.
        """
        if len(names) != len(self.config.d_models):
            raise ValueError(
                f"PlantedWorld.sources: expected {len(self.config.d_models)} names, got {list(names)}."
            )
        return tuple(
            Source(name=name, d_model=d_model, scale=scale_from_mean_norm(norm, d_model))
            for name, d_model, norm in zip(names, self.config.d_models, self.mean_norms)
        )

    def batches(
        self, n_tokens: int, *, generator: torch.Generator, batch_tokens: int = 2048
    ) -> Iterator[Tensor]:
        """Rows to train on.

        Args:
            n_tokens: How many in all; the last batch may be smaller.
            generator: Source of randomness, on the CPU.
            batch_tokens: Rows per batch.

        Yields:
            Raw `[batch, width]` rows.
        """
        for start in range(0, n_tokens, batch_tokens):
            yield self.sample(min(batch_tokens, n_tokens - start), generator)[0]

    def measure_batches(
        self, n_tokens: int, *, generator: torch.Generator, batch_tokens: int = 2048
    ) -> Iterator[tuple[MeasureBatch, Tensor]]:
        """Held-out rows with the truth beside them; 64 consecutive rows count as a sequence.

        Args:
            n_tokens: How many in all, a multiple of 64.
            generator: Source of randomness, on the CPU.
            batch_tokens: Rows per batch, a multiple of 64.

        Yields:
            What the measures take, and the activation of each planted feature, `[batch, feature]`.

        Raises:
            ValueError: A number that cuts a sequence.
        """
        if n_tokens % SEQUENCE_TOKENS or batch_tokens % SEQUENCE_TOKENS:
            raise ValueError(
                f"PlantedWorld.measure_batches: n_tokens and batch_tokens must be multiples of "
                f"{SEQUENCE_TOKENS}, got {n_tokens} and {batch_tokens}."
            )
        for start in range(0, n_tokens, batch_tokens):
            rows, activations = self.sample(min(batch_tokens, n_tokens - start), generator)
            sequence = (start + torch.arange(len(rows))) // SEQUENCE_TOKENS
            yield MeasureBatch(rows=rows, sequence=sequence), activations

    @cached_property
    def _firing(self) -> Firing:
        return Firing(self.features, correlation=self.config.correlation, n_groups=self.config.n_groups)

    @cached_property
    def _flat(self) -> Tensor:
        return torch.cat(self.directions, dim=1)

    @cached_property
    def _noise(self) -> Tensor:
        return torch.cat([torch.full((d,), std) for d, std in zip(self.config.d_models, self.noise_std)])
