"""Rows of the ablation experiment's tables, and what its figures show of them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crosscoders.bootstrap import Estimate, clustered_mean
from crosscoders.experiments.ablation.measure import (
    ABLATED,
    NORM_MATCHED,
    RANDOM,
    RECONSTRUCTION,
    REPLACED,
    SHUFFLED,
    Measured,
    edit_name,
)
from crosscoders.interventions.ablation.effects import MEASURES, TargetScores
from crosscoders.interventions.ablation.latent_sets import MatchedSets

CLEAN = "clean"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A change of the targets' scores, or a difference of two on the same occurrences, with its intervals.

    Args:
        category: Reasoning category.
        percent: Which set.
        what: `comparison_name`.
        intervals: By measure.
        n_draws: Draws of the control that it compares with, if that is drawn.
        n_exceeded: Draws whose mean change of the logit lies above that of the set.
    """

    category: str
    percent: float
    what: str
    intervals: Mapping[str, Estimate]
    n_draws: int | None = None
    n_exceeded: int | None = None

    @property
    def is_below(self) -> bool:
        """Whether the logit's interval lies below zero, and the set below every draw."""
        return self.intervals["logit"].is_below_zero and self.n_exceeded == self.n_draws

    def to_row(self) -> dict[str, Any]:
        """As a row of a table."""
        row: dict[str, Any] = {
            "category": self.category,
            "top_percent": self.percent,
            "comparison": self.what,
        }
        for name, interval in self.intervals.items():
            row |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
        n_rows = next(iter(self.intervals.values())).n
        return row | {"n_rows": n_rows, "n_draws": self.n_draws, "n_draws_exceeded": self.n_exceeded}


def comparison_name(first: tuple[str, str], second: tuple[str, str] | None) -> str:
    """Name of the change of one (edit, source), or of its difference to another's."""
    name = f"{first[0]} in {first[1]}"
    return name if second is None else f"{name} - {second[0]} in {second[1]}"


def effect_rows(
    category: str,
    m: Measured,
    sets: Mapping[float, Tensor],
    *,
    sources: tuple[str, str],
    generator: torch.Generator,
) -> Iterator[dict[str, Any]]:
    """Rows of `ablation.csv` for one category.

    Args:
        category: Its name.
        m: What was measured.
        sets: Latents by percentage.
        sources: The base and the distilled model.
        generator: Source of the intervals.
    """
    for percent, latents in sets.items():
        for source in reversed(sources):
            for kind in m.kinds(source):
                yield from _kind_rows(category, m, percent, source, kind, len(latents), generator=generator)
    if RECONSTRUCTION in m.effects.edited:
        for source in reversed(sources):
            yield {
                **_head(category, m, None, source, RECONSTRUCTION, n_latents=0),
                **_cells(
                    m,
                    m.effects.clean[source],
                    m.effects.edited[RECONSTRUCTION][source],
                    m.effects.relative_size[RECONSTRUCTION][source],
                    generator,
                ),
            }


def _kind_rows(
    category: str,
    m: Measured,
    percent: float,
    source: str,
    kind: str,
    n_latents: int,
    *,
    generator: torch.Generator,
) -> Iterator[dict[str, Any]]:
    head = _head(category, m, percent, source, kind, n_latents=n_latents)
    after, size = m.after(kind, percent, source), m.relative_size(kind, percent, source)
    yield head | _cells(m, m.before(kind, source), after, size, generator)
    if kind == REPLACED:
        yield head | {"baseline": CLEAN} | _cells(m, m.effects.clean[source], after, size, generator)
    if kind in (RANDOM, SHUFFLED):
        for draw, name in enumerate(m.names(kind, percent)):
            head = _head(category, m, percent, source, kind, n_latents=n_latents, draw=draw)
            one, size = m.effects.edited[name][source], m.effects.relative_size[name][source]
            yield head | _cells(m, m.before(kind, source), one, size, generator)


def _head(
    category: str,
    m: Measured,
    percent: float | None,
    source: str,
    kind: str,
    *,
    n_latents: int,
    draw: int | None = None,
) -> dict[str, Any]:
    head: dict[str, Any] = {
        "category": category,
        "top_percent": percent,
        "source": source,
        "edit": kind,
        "draw": None if draw is None else draw + 1,
        "baseline": RECONSTRUCTION if kind == REPLACED else CLEAN,
        "n_latents": n_latents,
        "n_occurrences": len(m.occurrences),
        "n_rows": m.occurrences.n_rows,
        "n_unscalable": None,
        "frequency_ratio": None,
        "energy_ratio": None,
        "n_unmatched": None,
    }
    if percent is not None and kind == NORM_MATCHED:
        head["n_unscalable"] = m.effects.n_unscalable[edit_name(kind, percent)][source]
    if percent is not None and kind == RANDOM:
        head |= _match_cells(m.matches[percent], draw)
    return head


def _match_cells(matched: MatchedSets, draw: int | None) -> dict[str, float]:
    cells = {}
    for name in ("frequency_ratio", "energy_ratio", "n_unmatched"):
        values = getattr(matched, name)
        cells[name] = sum(values) / len(values) if draw is None else float(values[draw])
    return cells


def _cells(
    m: Measured, before: TargetScores, after: TargetScores, size: Tensor, generator: torch.Generator
) -> dict[str, Any]:
    cells: dict[str, Any] = {"relative_size": float(size.mean())}
    change = after.minus(before)
    for measure in MEASURES:
        interval = _interval(m, getattr(change, measure), generator)
        cells |= {
            f"{measure}_before": float(getattr(before, measure).mean()),
            f"{measure}_after": float(getattr(after, measure).mean()),
            f"{measure}_change": interval.mean,
            f"{measure}_low": interval.low,
            f"{measure}_high": interval.high,
        }
    return cells


def _interval(m: Measured, values: Tensor, generator: torch.Generator) -> Estimate:
    return clustered_mean(values, m.occurrences.rows, generator=generator)


def compare(
    category: str,
    m: Measured,
    percents: Iterable[float],
    *,
    base: str,
    distilled: str,
    generator: torch.Generator,
) -> Iterator[Comparison]:
    """Changes in each model, between the models, and between the set and each control.

    Args:
        category: Name of the category.
        m: What was measured.
        percents: Sets to compare.
        base: Name of the base.
        distilled: Name of the distilled model.
        generator: Source of the intervals.
    """
    pairs: list[tuple[tuple[str, str], tuple[str, str] | None]] = [
        ((ABLATED, distilled), None),
        ((ABLATED, base), None),
        ((ABLATED, distilled), (ABLATED, base)),
        ((ABLATED, distilled), (NORM_MATCHED, base)),
        *(((ABLATED, source), (kind, source)) for source in (distilled, base) for kind in (RANDOM, SHUFFLED)),
    ]
    if REPLACED in m.kinds(base):
        pairs.append(((REPLACED, distilled), (REPLACED, base)))
    for percent in percents:
        for first, second in pairs:
            change = m.change(first[0], percent, first[1])
            logit = float(change.logit.mean())
            if second is not None:
                change = change.minus(m.change(second[0], percent, second[1]))
            draws = _draw_changes(m, percent, second)
            yield Comparison(
                category=category,
                percent=percent,
                what=comparison_name(first, second),
                intervals={name: _interval(m, getattr(change, name), generator) for name in MEASURES},
                n_draws=None if draws is None else len(draws),
                n_exceeded=None if draws is None else sum(logit < draw for draw in draws),
            )


def _draw_changes(m: Measured, percent: float, control: tuple[str, str] | None) -> list[float] | None:
    """Mean change of the logit under each draw of a control; None if it is not drawn."""
    if control is None or control[0] not in (RANDOM, SHUFFLED):
        return None
    kind, source = control
    changes = [m.effects.change(name, source).logit for name in m.names(kind, percent)]
    return [float(change.mean()) for change in changes]


def is_curve(row: Mapping[str, Any]) -> bool:
    """Whether a row of `ablation.csv` is a point of a curve: no single draw, counted from its baseline."""
    counted_from = RECONSTRUCTION if row["edit"] == REPLACED else CLEAN
    return row["draw"] is None and row["edit"] != RECONSTRUCTION and row["baseline"] == counted_from


def curve_panels(rows: list[dict[str, Any]], measure: str) -> dict[str, Any]:
    """Points of `ablation_curves`: category, source, kind of edit, one point per percentage.

    Args:
        rows: Rows of `ablation.csv`.
        measure: Which score.
    """
    panels: dict[str, Any] = {}
    for row in filter(is_curve, rows):
        lines = panels.setdefault(row["category"], {}).setdefault(row["source"], {})
        point = tuple(row[f"{measure}_{part}"] for part in ("change", "low", "high"))
        lines.setdefault(row["edit"], []).append(point)
    return panels
