"""Features planted into real activations: what could be found at all on the user's own data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.diffing.planted.features import PlantedFeature
from crosscoders.sources import Source, check_activations, width

Directions = Literal["random", "decoder", "both"]
PAGE_ROWS = 4096  # rows drawn at once: a batch of any size costs little more than its own rows
_SEEDS = 2**62  # page seeds stay within what a generator takes


@dataclass(frozen=True, kw_only=True)
class SpikeIn:
    """Which features to plant into real activations.

    On a share `rate` of the tokens, drawn independently, a plant adds
    `strength * u * mean norm * direction` to the source that owns it and nothing to the others, with `u`
    uniform in [0.5, 1.5] and a direction of length 1. Plants in random directions are truly specific to their
    owner; plants in directions of the run's own decoder re-use a known direction in a new context.

    Args:
        rates: Share of tokens on which a plant is on.
        n_per_rate: Plants per rate and kind of direction; owners take turns.
        strength: Mean norm of a plant where it is on, over the mean norm of its owner's activations. None:
            that of a typical latent, which `draw` is told.
        directions: Random (isotropic), of the decoder, or both.

    Raises:
        ValueError: A number out of range.
    """

    rates: tuple[float, ...] = (0.02, 0.005, 0.001)
    n_per_rate: int = 16
    strength: float | None = None
    directions: Directions = "both"

    def __post_init__(self) -> None:
        if not self.rates or not all(0 < rate < 1 for rate in self.rates) or self.n_per_rate < 1:
            raise ValueError(
                "SpikeIn: rates must lie between 0 and 1 and n_per_rate be at least 1, got "
                f"{self.rates} and {self.n_per_rate}."
            )
        if self.strength is not None:
            _check_strength(self.strength)
        if self.directions not in get_args(Directions):
            raise ValueError(
                f"SpikeIn: directions must be one of {get_args(Directions)}, got {self.directions!r}."
            )

    @property
    def n_decoder_rows(self) -> int:
        """Decoder rows that `draw` needs."""
        return 0 if self.directions == "random" else self.n_per_rate * len(self.rates)

    @typed
    def draw(
        self,
        sources: Sequence[Source],
        *,
        generator: torch.Generator,
        typical_strength: float | None = None,
        decoder_rows: Float[Tensor, "_row width"] | None = None,
    ) -> "Spikes":
        """Draw the directions and the seed of the plants.

        Args:
            sources: Sources whose activations are planted into, with the scales of those activations.
            generator: Source of randomness, on the CPU.
            typical_strength: Strength to take where the config names none, as `typical_strength` measures it.
            decoder_rows: Rows of a trained decoder that are known to both models, such as those of live
                shared latents; a plant takes its owner's part of one of them.

        Returns:
            The plants.

        Raises:
            ValueError: No strength, a single source, or fewer decoder rows than plants.
        """
        strength = typical_strength if self.strength is None else self.strength
        if strength is None:
            raise ValueError("SpikeIn.draw: pass typical_strength, or set SpikeIn(strength=...).")
        _check_strength(strength)
        if len(sources) < 2:
            raise ValueError("SpikeIn.draw: plants belong to one of several sources, got fewer than two.")
        features = self._features(len(sources))
        rows = torch.randn(len(features), width(sources), generator=generator)
        if self.n_decoder_rows:
            features, rows = _borrow(features, rows, decoder_rows, generator)
        return Spikes(
            features=tuple(features),
            directions=_owned(rows, features, sources) * strength,
            sources=tuple(sources),
            seed=int(torch.randint(_SEEDS, (), generator=generator)),
        )

    def _features(self, n_sources: int) -> list[PlantedFeature]:
        """Rate by rate, those in random directions first."""
        kinds = {"random": ("exclusive",), "decoder": ("reused",), "both": ("exclusive", "reused")}
        return [
            PlantedFeature(kind=kind, rate=rate, owner=i % n_sources)
            for rate in self.rates
            for kind in kinds[self.directions]
            for i in range(self.n_per_rate)
        ]


@final
class Spikes:
    """Plants for real activations; what a row gets depends only on its position in the run.

    Positions count rows from the start of a stream, so that a run that resumes, or cuts its batches
    elsewhere, plants the same. `plant` fits `training.fit_many`'s transforms.

    Args:
        features: What is true of each plant: kind "exclusive" in a random direction, "reused" in one of the
            decoder (`known_as` is then its row among those given).
        directions: What each adds to a row at activation 1, raw.
        sources: The sources planted into.
        seed: Seed of when each is on.

    Raises:
        ValueError: Not one direction per plant.
    """

    def __init__(
        self,
        *,
        features: tuple[PlantedFeature, ...],
        directions: Tensor,
        sources: tuple[Source, ...],
        seed: int,
    ) -> None:
        if directions.shape != (len(features), width(sources)):
            raise ValueError(
                f"Spikes: expected directions [{len(features)}, {width(sources)}], got "
                f"{tuple(directions.shape)}."
            )
        self.features, self.directions, self.sources = features, directions, sources
        self._seed = seed
        self._rates = torch.tensor([feature.rate for feature in features], dtype=torch.float64)
        self._page: tuple[int, Tensor] | None = None  # the last one drawn, which the next batch often needs

    @typed
    def activations(self, n_rows: int, position: int) -> Float[Tensor, "batch _feature"]:
        """Activation of each plant on some rows of a run.

        Args:
            n_rows: Number of rows.
            position: Rows of the run before them.

        Returns:
            Zero where a plant is off, otherwise uniform in [0.5, 1.5].

        Raises:
            ValueError: A negative number.
        """
        if min(n_rows, position) < 0:
            raise ValueError(f"Spikes: n_rows and position must not be negative, got {n_rows}, {position}.")
        first, last = position // PAGE_ROWS, (position + max(n_rows, 1) - 1) // PAGE_ROWS
        pages = torch.cat([self._draw_page(page) for page in range(first, last + 1)])
        start = position - first * PAGE_ROWS
        return pages[start : start + n_rows].clone()

    @typed
    def plant(self, rows: Float[Tensor, "batch width"], position: int) -> Float[Tensor, "batch width"]:
        """Rows with the plants added; the rows that came in stay as they are.

        Args:
            rows: Raw activations of all sources.
            position: Rows of the run before them.

        Returns:
            The planted rows, of the same dtype and on the same device.

        Raises:
            ValueError: Rows of another width, or a negative position.
        """
        check_activations(rows, self.sources, where="Spikes.plant")
        activations = self.activations(len(rows), position)
        at, feature = activations.nonzero().unbind(1)
        added = activations[at, feature, None] * self.directions[feature]
        return rows.index_add(0, at.to(rows.device), added.to(rows))

    def _draw_page(self, page: int) -> Tensor:
        if self._page is None or self._page[0] != page:
            generator = torch.Generator().manual_seed((self._seed + page) % _SEEDS)
            drawn = torch.rand(PAGE_ROWS, len(self._rates), generator=generator, dtype=torch.float64)
            # Where a uniform number lies below the rate, it is uniform there too.
            self._page = page, torch.where(drawn < self._rates, 0.5 + drawn / self._rates, 0.0).float()
        return self._page[1]


@typed
def typical_strength(
    decoder_norms: Float[Tensor, "latent source"],
    mean_activations: Float[Tensor, " latent"],
    *,
    sources: Sequence[Source],
) -> float:
    """Share of the mean activation norm that a typical latent writes where it fires.

    The median over live latents of `max_s m_j |d_j^s| / sqrt(d_model_s)`, in normalized space, where the mean
    norm of a source is `sqrt(d_model)`.

    Args:
        decoder_norms: Decoder norms in normalized space.
        mean_activations: `m`, the mean activation of each latent over the tokens on which it fires; NaN or 0
            for one that never does.
        sources: Sources in the order of the norms' columns.

    Returns:
        The strength for `SpikeIn`.

    Raises:
        ValueError: No live latent, or not one column per source.
    """
    if decoder_norms.shape != (len(mean_activations), len(sources)):
        raise ValueError(
            f"typical_strength: expected norms [{len(mean_activations)}, {len(sources)}], got "
            f"{tuple(decoder_norms.shape)}."
        )
    is_live = mean_activations > 0
    if not bool(is_live.any()):
        raise ValueError("typical_strength: no latent ever fires; is the crosscoder trained?")
    root = torch.tensor([math.sqrt(source.d_model) for source in sources], device=decoder_norms.device)
    written = (decoder_norms / root).amax(dim=1)[is_live] * mean_activations[is_live]
    return float(written.double().quantile(0.5))


def _borrow(
    features: list[PlantedFeature], rows: Tensor, decoder_rows: Tensor | None, generator: torch.Generator
) -> tuple[list[PlantedFeature], Tensor]:
    """Give each reused plant a decoder row of its own, in place of its random direction."""
    borrowers = [i for i, feature in enumerate(features) if feature.kind == "reused"]
    n_rows = 0 if decoder_rows is None else len(decoder_rows)
    if decoder_rows is None or n_rows < len(borrowers):
        raise ValueError(
            f"SpikeIn.draw: {len(borrowers)} plants in directions of the decoder need as many decoder_rows, "
            f'got {n_rows}; pass more, lower n_per_rate, or set directions="random".'
        )
    chosen = torch.randperm(n_rows, generator=generator)[: len(borrowers)]
    rows[borrowers] = decoder_rows.detach().cpu().float()[chosen]
    for i, row in zip(borrowers, chosen.tolist()):
        features[i] = replace(features[i], known_as=row)
    return features, rows


def _owned(rows: Tensor, features: Sequence[PlantedFeature], sources: Sequence[Source]) -> Tensor:
    """The owner's part of each row, as long as the mean raw norm of that source, and zero elsewhere."""
    owned = torch.zeros_like(rows)
    owner = torch.tensor([feature.owner for feature in features])
    start = 0
    for number, source in enumerate(sources):
        mine, columns = owner == number, slice(start, start + source.d_model)
        part = rows[mine, columns]
        norms = part.norm(dim=1, keepdim=True)
        if bool((norms == 0).any()):
            raise ValueError(
                f"SpikeIn.draw: a decoder row is zero in source {source.name!r}, which should own it; pass "
                "rows of latents that every source has."
            )
        owned[mine, columns] = part / norms * (math.sqrt(source.d_model) / source.scale)
        start += source.d_model
    return owned


def _check_strength(strength: float) -> None:
    if not (math.isfinite(strength) and strength > 0):
        raise ValueError(f"SpikeIn: strength must be finite and above 0, got {strength}.")
