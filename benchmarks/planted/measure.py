"""Measure a trained crosscoder on held-out rows of its world: everything that any method judges from."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.planted.scaling import mapped_scaling
from benchmarks.planted.settings import HELD_OUT_ROWS, HELD_OUT_TOKENS, Case
from crosscoders.crosscoder import Crosscoder
from crosscoders.diffing.batches import MeasureBatch
from crosscoders.diffing.measures.linear_map import fit_linear_map
from crosscoders.diffing.measures.moments import collect_moments
from crosscoders.diffing.planted import FeatureMatch, match_features
from crosscoders.diffing.verdicts.evidence import gather_evidence
from crosscoders.latents import LatentTable


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What is known of one crosscoder.

    Args:
        evidence: What our verdicts are made from; None for an autoencoder of the difference.
        match: Which latents follow which planted features.
        scaling: The published method's figures; none for an autoencoder of the difference.
        explained: Explained variance of each source.
        l0: Mean number of latents that fire on a token.
    """

    evidence: LatentTable | None
    match: FeatureMatch
    scaling: dict[str, Tensor]
    explained: tuple[float, ...]
    l0: float


def held_out(case: Case, *, n_tokens: int = HELD_OUT_TOKENS) -> Iterator[tuple[MeasureBatch, Tensor]]:
    """Fresh rows of the case's world with the truth beside them; the same every time."""
    return case.draw_world().measure_batches(n_tokens, generator=case.generator(HELD_OUT_ROWS))


def measure(crosscoder: Crosscoder, case: Case, *, n_tokens: int = HELD_OUT_TOKENS) -> Measured:
    """Every figure of one crosscoder."""
    batches: list[MeasureBatch] = []

    def keep() -> Iterator[tuple[Tensor, Tensor]]:
        for batch, truth in held_out(case, n_tokens=n_tokens):
            rows = _difference(batch.rows) if case.recipe.of_difference else batch.rows
            batches.append(MeasureBatch(rows=rows, sequence=batch.sequence))
            yield truth, _codes(crosscoder, rows)

    crosscoder.eval()
    match = match_features(keep())
    found = Measured(
        evidence=None,
        match=match,
        scaling={},
        explained=_explained(crosscoder, batches),
        l0=float(match.frequency.sum()),
    )
    if case.recipe.of_difference:
        return found
    maps = _maps(crosscoder, batches)
    return replace(
        found,
        evidence=gather_evidence(crosscoder, lambda: batches),
        scaling=mapped_scaling(collect_moments(crosscoder, batches), crosscoder, maps=maps),
    )


def _maps(crosscoder: Crosscoder, batches: list[MeasureBatch]) -> tuple[Tensor, Tensor]:
    """Ridge map from the first source to the second, and back."""
    first, second = (source.name for source in crosscoder.sources)
    there, back = ((first, second), (second, first))
    return (
        fit_linear_map(batches, crosscoder.sources, pair=there),
        fit_linear_map(batches, crosscoder.sources, pair=back),
    )


def _difference(rows: Tensor) -> Tensor:
    first, second = rows.chunk(2, dim=1)
    return second - first


@torch.no_grad()
def _codes(crosscoder: Crosscoder, rows: Tensor) -> Tensor:
    codes = crosscoder.encode(rows)
    return codes if isinstance(codes, Tensor) else codes.to_dense()


@torch.no_grad()
def _explained(crosscoder: Crosscoder, batches: list[MeasureBatch]) -> tuple[float, ...]:
    rows = torch.cat([batch.rows for batch in batches])
    error = torch.cat([batch.rows - crosscoder.reconstruct(batch.rows) for batch in batches])
    widths = [source.d_model for source in crosscoder.sources]
    parts = zip(error.split(widths, dim=1), (rows - rows.mean(dim=0)).split(widths, dim=1))
    return tuple(1 - float(e.square().sum() / x.square().sum()) for e, x in parts)


def measure_into(case: Case, cache: Path) -> str:
    """Measure and keep, unless the cache has it; says which it was."""
    path = cache / f"{case.name}.measured.pt"
    if path.exists():
        return f"{case.name}: there"
    torch.set_num_threads(1)
    found = measure(Crosscoder.from_pretrained(case.folder(cache)), case)
    torch.save(found, path)
    return f"{case.name}: measured"


def measured(case: Case, cache: Path) -> Measured:
    """What was kept."""
    return torch.load(cache / f"{case.name}.measured.pt", weights_only=False)
