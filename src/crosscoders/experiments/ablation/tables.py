"""Rows of the ablation experiment's tables, and what its figures show of them."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    is_comparable,
)
from crosscoders.interventions.ablation.effects import MEASURES, TargetScores

CLEAN = "clean"
_UNDEFINED = Estimate(mean=math.nan, low=math.nan, high=math.nan, n=0)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A change of the targets' scores, or a difference of two on the same occurrences, with its intervals.

    Args:
        category: Reasoning category.
        percent: Which set.
        what: `comparison_name`.
        intervals: By measure; NaN where the control is not available. They compare unlike sizes where
            `is_comparable` is false.
        size_ratio: Mean ||edit||/||h|| of the second edit over that of the first; None without a second, NaN
            without an edit.
        n_draws: Draws of the control that count, if it is drawn; 0 if it is not available.
        n_exceeded: Of these, draws whose mean change of the logit lies above that of the set.
    """

    category: str
    percent: float
    what: str
    intervals: Mapping[str, Estimate]
    size_ratio: float | None = None
    n_draws: int | None = None
    n_exceeded: int | None = None

    @property
    def is_below(self) -> bool:
        """Whether the logit's interval lies below zero, and the set below every draw."""
        return self.intervals["logit"].is_below_zero and self.n_exceeded == self.n_draws

    @property
    def is_comparable(self) -> bool:
        """Whether the two edits are of about equal size, and the control available."""
        return self.size_ratio is not None and is_comparable(self.size_ratio) and self.n_draws != 0

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
        return row | {
            "n_rows": n_rows,
            "size_ratio": self.size_ratio,
            "n_draws": self.n_draws,
            "n_draws_exceeded": self.n_exceeded,
        }


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
                yield from _kind_rows(category, m, percent, source, kind, latents, generator=generator)
    if RECONSTRUCTION in m.effects.edited:
        for source in reversed(sources):
            yield {
                **_head(category, m, None, source, RECONSTRUCTION),
                "n_latents": 0,
                "relative_size": float(m.effects.relative_size[RECONSTRUCTION][source].mean()),
                **_cells(m, m.effects.clean[source], m.effects.edited[RECONSTRUCTION][source], generator),
            }


def _kind_rows(
    category: str,
    m: Measured,
    percent: float,
    source: str,
    kind: str,
    latents: Tensor,
    *,
    generator: torch.Generator,
) -> Iterator[dict[str, Any]]:
    head = _head(category, m, percent, source, kind) | {"n_latents": len(latents)}
    head["relative_size"] = m.mean_size(kind, percent, source)
    if kind in (RANDOM, SHUFFLED):
        yield from _drawn_rows(m, percent, source, kind, latents, head, generator=generator)
        return
    after = m.after(kind, percent, source)
    if kind == NORM_MATCHED:
        head["n_unscalable"] = m.effects.n_unscalable[edit_name(kind, percent)][source]
    yield head | _cells(m, m.before(kind, source), after, generator)
    if kind == REPLACED:
        yield head | {"baseline": CLEAN} | _cells(m, m.effects.clean[source], after, generator)


def _drawn_rows(
    m: Measured,
    percent: float,
    source: str,
    kind: str,
    latents: Tensor,
    head: dict[str, Any],
    *,
    generator: torch.Generator,
) -> Iterator[dict[str, Any]]:
    """The mean over the draws that are shown, then every draw, also those that were not possible."""
    clean, made, counting = (
        m.effects.clean[source],
        m.made(kind, percent, source),
        m.counting(kind, percent, source),
    )
    each = [_draw_cells(m, percent, source, kind, latents, draw=draw) for draw in range(m.n_draws)]
    whole = {name: _mean_defined([cells[name] for cells in each]) for name in each[0]}
    whole |= {
        "n_draws": len(counting),
        "size_ratio": _size_ratio(m, percent, (ABLATED, source), (kind, source)),
    }
    yield head | whole | _cells(m, clean, m.after(kind, percent, source), generator)
    for draw, cells in enumerate(each):
        name = made.get(draw)
        own: dict[str, Any] = {"draw": draw + 1, "n_draws": int(name in counting), "relative_size": None}
        if name is not None:
            own["relative_size"] = float(m.effects.relative_size[name][source].mean())
        after = None if name is None else m.effects.edited[name][source]
        yield head | cells | own | _cells(m, clean, after, generator)


def _draw_cells(
    m: Measured, percent: float, source: str, kind: str, latents: Tensor, *, draw: int
) -> dict[str, Any]:
    """What one control is made of: its latents' number, size, and match as drawn, before any rescaling."""
    name = m.made(kind, percent, source).get(draw)
    cells: dict[str, Any] = {
        "n_latents": len(latents) if name is not None else 0,
        "size_ratio": None if name is None else m.size_ratio(name, percent, source),
        "n_unscalable": None if name is None else m.effects.n_unscalable[name][source],
    }
    if kind == RANDOM:
        matched = m.matches[percent, source]
        other = next(at for at, known in enumerate(m.effects.clean) if known != source)
        drawn, wanted = (float(m.energy[group, other].sum()) for group in (matched.draws[draw], latents))
        cells |= {
            "n_latents": len(matched.draws[draw]),
            "n_unmatched": matched.n_unmatched[draw],
            "frequency_ratio": matched.frequency_ratio[draw],
            "energy_ratio": matched.energy_ratio[draw],
            "energy_ratio_other": drawn / wanted if wanted > 0 else None,
        }
    return cells


def _mean_defined(values: Sequence[int | float | None]) -> float | None:
    known = [value for value in values if value is not None and value == value]
    return sum(known) / len(known) if known else None


def control_rows(category: str, m: Measured, sets: Mapping[float, Tensor]) -> Iterator[dict[str, Any]]:
    """Rows of `ablation_controls.csv` for one category: the latents of every random control.

    Args:
        category: Its name.
        m: What was measured.
        sets: Latents by percentage.
    """
    for (percent, source), matched in m.matches.items():
        counting = m.counting(RANDOM, percent, source)
        for draw, chosen in enumerate(matched.draws):
            yield {
                "category": category,
                "top_percent": percent,
                "source": source,
                "draw": draw + 1,
                "counts": int(edit_name(RANDOM, percent, draw=draw, source=source) in counting),
                **dict.fromkeys(("n_unmatched", "frequency_ratio", "energy_ratio", "energy_ratio_other")),
                **_draw_cells(m, percent, source, RANDOM, sets[percent], draw=draw),
                "latents": " ".join(str(latent) for latent in chosen.tolist()),
            }


def _head(category: str, m: Measured, percent: float | None, source: str, kind: str) -> dict[str, Any]:
    head: dict[str, Any] = {
        "category": category,
        "top_percent": percent,
        "source": source,
        "edit": kind,
        "draw": None,
        "baseline": RECONSTRUCTION if kind == REPLACED else CLEAN,
        "n_latents": None,
        "n_occurrences": len(m.occurrences),
        "n_rows": m.occurrences.n_rows,
    }
    extras = (
        "n_draws",
        "n_unscalable",
        "n_unmatched",
        "frequency_ratio",
        "energy_ratio",
        "energy_ratio_other",
    )
    return head | dict.fromkeys((*extras, "relative_size", "size_ratio"))


def _cells(
    m: Measured, before: TargetScores, after: TargetScores | None, generator: torch.Generator
) -> dict[str, Any]:
    """Scores before and after and the change with its interval; NaN where nothing was measured."""
    cells: dict[str, Any] = {}
    change = None if after is None else after.minus(before)
    for measure in MEASURES:
        interval = _interval(m, None if change is None else getattr(change, measure), generator)
        cells |= {
            f"{measure}_before": float(getattr(before, measure).mean()),
            f"{measure}_after": math.nan if after is None else float(getattr(after, measure).mean()),
            f"{measure}_change": interval.mean,
            f"{measure}_low": interval.low,
            f"{measure}_high": interval.high,
        }
    return cells


def _interval(m: Measured, values: Tensor | None, generator: torch.Generator) -> Estimate:
    return _UNDEFINED if values is None else clustered_mean(values, m.occurrences.rows, generator=generator)


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
            draws = _draw_changes(m, percent, second)
            change = _difference(m, percent, first, second)
            logit = float(m.effects.change(edit_name(first[0], percent), first[1]).logit.mean())
            yield Comparison(
                category=category,
                percent=percent,
                what=comparison_name(first, second),
                intervals={
                    name: _interval(m, None if change is None else getattr(change, name), generator)
                    for name in MEASURES
                },
                size_ratio=None if second is None else _size_ratio(m, percent, first, second),
                n_draws=None if draws is None else len(draws),
                n_exceeded=None if draws is None else sum(logit < draw for draw in draws),
            )


def _difference(
    m: Measured, percent: float, first: tuple[str, str], second: tuple[str, str] | None
) -> TargetScores | None:
    """Change of the first (edit, source), less that of the second; None where one was not measured."""
    change = m.change(first[0], percent, first[1])
    if second is None or change is None:
        return change
    other = m.change(second[0], percent, second[1])
    return None if other is None else change.minus(other)


def _size_ratio(m: Measured, percent: float, first: tuple[str, str], second: tuple[str, str]) -> float:
    sizes = [m.mean_size(kind, percent, source) for kind, source in (second, first)]
    return sizes[0] / sizes[1] if sizes[1] > 0 else math.nan


def _draw_changes(m: Measured, percent: float, control: tuple[str, str] | None) -> list[float] | None:
    """Mean change of the logit under each draw of a control that counts; None if it is not drawn."""
    if control is None or control[0] not in (RANDOM, SHUFFLED):
        return None
    kind, source = control
    changes = [m.effects.change(name, source).logit for name in m.counting(kind, percent, source)]
    return [float(change.mean()) for change in changes]


def is_curve(row: Mapping[str, Any]) -> bool:
    """Whether a row of `ablation.csv` is a point of a curve: no single draw, counted from its baseline."""
    counted_from = RECONSTRUCTION if row["edit"] == REPLACED else CLEAN
    return row["draw"] is None and row["edit"] != RECONSTRUCTION and row["baseline"] == counted_from


def curve_panels(rows: list[dict[str, Any]], measure: str) -> dict[str, Any]:
    """Points of `ablation_curves`: category, source, kind of edit, one point per percentage.

    A control none of whose draws counts is shown as one of another size.

    Args:
        rows: Rows of `ablation.csv`.
        measure: Which score.
    """
    panels: dict[str, Any] = {}
    for row in filter(is_curve, rows):
        lines = panels.setdefault(row["category"], {}).setdefault(row["source"], {})
        point = (*(row[f"{measure}_{part}"] for part in ("change", "low", "high")), row["n_draws"] != 0)
        lines.setdefault(row["edit"], []).append(point)
    return panels
