"""Off-activity: does a source use a latent's direction elsewhere, on tokens where the latent is off?"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.diffing.batches import MeasureBatch
from crosscoders.diffing.measures.moments import nonzero_entries
from crosscoders.models.hooks import evaluation_mode
from crosscoders.sources import check_activations, column_slices, scale_vector, source_index


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class OffActivity:
    """Activity of one source along given directions on the tokens where a latent is off.

    Args:
        latents: Number of each latent in the crosscoder.
        source: Name of the source.
        variance: Variance of the projection on the unit direction where the latent is off.
        random_mean: Mean over random directions of the same, on the same tokens.
        share_below: Share of the random directions with less variance.
    """

    latents: Int[Tensor, " chosen"]
    source: str
    variance: Float[Tensor, " chosen"]
    random_mean: Float[Tensor, " chosen"]
    share_below: Float[Tensor, " chosen"]

    @property
    def excess(self) -> Float[Tensor, " chosen"]:
        """Variance over that of a random direction; about 1 where the source does not use the direction."""
        return self.variance / self.random_mean


@typed
@torch.no_grad()
def off_activity(
    crosscoder: Crosscoder,
    batches: Iterable[MeasureBatch],
    *,
    source: str,
    latents: Int[Tensor, " chosen"],
    directions: Float[Tensor, "chosen d_model"],
    generator: torch.Generator,
    n_random: int = 256,
) -> OffActivity:
    """How active a source is along a latent's direction while the latent is off, against random directions.

    A second pass over the rows. For equal widths pass the free direction of the other source (does the base
    use the distilled model's direction elsewhere?), otherwise this source's decoder row of the known latent
    that `reuse` found. Encodes in evaluation mode and leaves the crosscoder in the mode it had.

    Args:
        crosscoder: The crosscoder.
        batches: Held-out raw activations.
        source: Source whose activity is measured, in normalized space.
        latents: Numbers of the latents.
        directions: One direction per latent in the space of `source`, of any length.
        generator: Source of the random directions, uniform on the sphere, on the CPU.
        n_random: How many of them.

    Returns:
        Variances; NaN where the latent is never off or its direction is zero.

    Raises:
        ValueError: Unknown source, latents that do not exist, directions of another width, `n_random` below
            1, or no rows.
    """
    at = source_index(crosscoder.sources, source)
    d_model = crosscoder.sources[at].d_model
    if directions.shape[1] != d_model or n_random < 1:
        raise ValueError(
            f"off_activity: source {source!r} has width {d_model} and n_random must be at least 1, got "
            f"directions of width {directions.shape[1]} and n_random={n_random}."
        )
    if not bool(((latents >= 0) & (latents < crosscoder.n_latents)).all()):
        raise ValueError(
            f"off_activity: latents must lie in 0..{crosscoder.n_latents - 1}, got {latents.tolist()}."
        )
    random = torch.randn(n_random, d_model, generator=generator, dtype=torch.float64)
    unit = directions.double() / directions.double().norm(dim=1, keepdim=True)
    sums = _OffSums(crosscoder, source, latents, unit=unit, random=random / random.norm(dim=1, keepdim=True))
    with evaluation_mode(crosscoder):
        for batch in batches:
            sums.add(batch)
    return sums.finish(source)


class _OffSums:
    """Counts, sums and square sums of the projections where each latent is off: all rows less those on."""

    def __init__(
        self, crosscoder: Crosscoder, source: str, latents: Tensor, *, unit: Tensor, random: Tensor
    ) -> None:
        self._crosscoder, self._device = crosscoder, crosscoder.W_dec.device
        self._columns = column_slices(crosscoder.sources)[source]
        self._scale = scale_vector(crosscoder.sources, dtype=torch.float64, device=self._device)
        self._latents = latents.cpu()
        distinct, self._which = latents.to(self._device).unique(return_inverse=True)
        self._place = torch.full((crosscoder.n_latents,), -1, device=self._device)
        self._place[distinct] = torch.arange(len(distinct), device=self._device)
        self._n_distinct = len(distinct)
        self._unit, self._random = unit.to(self._device), random.to(self._device)
        self._n_rows = 0
        shapes = ((len(latents),), (len(latents), 2), (len(latents), 2 * len(random)))
        self._n_on, self._own, self._on_random = (
            torch.zeros(shape, dtype=torch.float64, device=self._device) for shape in shapes
        )
        self._all_random = torch.zeros(2 * len(random), dtype=torch.float64, device=self._device)

    def add(self, batch: MeasureBatch) -> None:
        raw = check_activations(batch.rows, self._crosscoder.sources, where="off_activity").to(self._device)
        x = raw[:, self._columns].double() * self._scale[self._columns]
        row, latent, _ = nonzero_entries(self._crosscoder.encode(raw))
        fires = self._fires(row, self._place[latent], n_rows=len(x))
        self._n_rows += len(x)
        self._n_on += fires.sum(dim=1)
        own = (x @ self._unit.T).T
        off = own * (1 - fires)
        self._own += torch.stack([off.sum(dim=1), off.square().sum(dim=1)], dim=1)
        projected = x @ self._random.T
        both = torch.cat([projected, projected.square()], dim=1)
        self._all_random += both.sum(dim=0)
        self._on_random += fires @ both

    def _fires(self, row: Tensor, place: Tensor, *, n_rows: int) -> Tensor:
        """1 where a chosen latent fires [chosen batch]; `place` is -1 for the others."""
        fires = torch.zeros(self._n_distinct, n_rows, dtype=torch.float64, device=self._device)
        kept = place >= 0
        fires[place[kept], row[kept]] = 1.0
        return fires[self._which]

    def finish(self, source: str) -> OffActivity:
        if self._n_rows == 0:
            raise ValueError("off_activity: there are no rows; were the batches read before?")
        n_off = (self._n_rows - self._n_on).cpu()[:, None]
        sums, squares = (self._all_random - self._on_random).cpu().chunk(2, dim=1)
        random = squares / n_off - (sums / n_off).square()
        own = self._own.cpu() / n_off
        variance = own[:, 1] - own[:, 0].square()
        share = torch.where(variance.isnan(), torch.nan, (random < variance[:, None]).double().mean(dim=1))
        return OffActivity(
            latents=self._latents,
            source=source,
            variance=variance,
            random_mean=random.mean(dim=1),
            share_below=share,
        )
