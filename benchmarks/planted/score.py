"""Score every method on seeds and settings that no threshold was chosen from."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.planted.directions import match_directions
from benchmarks.planted.measure import Measured, measured
from benchmarks.planted.methods import METHODS, Claims, Method, dedicated, every_live_latent
from benchmarks.planted.recipes import ARCHITECTURES, N_DEDICATED, Recipe
from benchmarks.planted.settings import (
    CORRELATION,
    EQUAL_WIDTHS,
    MAIN,
    SUPERPOSITION,
    Case,
    Setting,
    cases_of,
)
from crosscoders.bootstrap import Estimate
from crosscoders.diffing.planted import (
    KINDS,
    SPECIFIC,
    FeatureMatch,
    PlantedScore,
    pool_scores,
    score,
)
from crosscoders.diffing.verdicts import Thresholds

Record = dict[str, Any]


def methods_of(recipe: Recipe) -> dict[str, Method]:
    """What can be asked of crosscoders of a recipe."""
    if recipe.of_difference:
        return {"every live latent": every_live_latent}
    if recipe.name == "dedicated latents":
        return METHODS | {"dedicated": dedicated(N_DEDICATED)}
    return METHODS


def score_all(cache: Path, thresholds: Thresholds) -> list[Record]:
    """One record per setting, recipe, method and base rate; the settings scored, then the architectures."""
    records = []
    for setting in (MAIN, SUPERPOSITION, CORRELATION):
        records += _of_recipe(setting, ARCHITECTURES[0], cache, thresholds)
    for recipe in ARCHITECTURES:
        records += _of_recipe(EQUAL_WIDTHS, recipe, cache, thresholds)
    return [*records, *_of_directions()]


def _of_recipe(setting: Setting, recipe: Recipe, cache: Path, thresholds: Thresholds) -> list[Record]:
    cases = cases_of(setting, setting.scored, recipe)
    found = [measured(case, cache) for case in cases]
    records = []
    for name, method in methods_of(recipe).items():
        scores = [
            score_claims(case, one.match, method(one, thresholds))
            for case, one in zip(cases, found, strict=True)
        ]
        records += list(_records(setting.name, recipe.name, name, pool_scores(scores)))
    return records


def _of_directions() -> Iterator[Record]:
    cases = cases_of(EQUAL_WIDTHS, EQUAL_WIDTHS.scored)
    matches = [match_directions(case) for case in cases]
    for name in matches[0]:
        scores = []
        for case, match in zip(cases, matches, strict=True):
            n = len(match[name].frequency)
            scores.append(score_claims(case, match[name], Claims(verdicts=[SPECIFIC] * n, owners=None)))
        yield from _records(EQUAL_WIDTHS.name, name, "every direction", pool_scores(scores))


def score_claims(case: Case, match: FeatureMatch, claims: Claims) -> PlantedScore:
    """Claims on one world against its truth."""
    return score(
        case.draw_world().features,
        match=match,
        verdicts=claims.verdicts,
        owners=claims.owners,
        rates=case.setting.config.rates,
    )


def _records(setting: str, recipe: str, method: str, pooled: PlantedScore) -> Iterator[Record]:
    for row in pooled.specific:
        yield {
            "setting": setting,
            "recipe": recipe,
            "method": method,
            **asdict(row),
            "f1": _defined(row.f1),
            **{name: _share(getattr(row, name)) for name in ("precision", "recall", "power")},
            "kinds": {
                kind: asdict(pooled.of(kind, row.rate)) | {"called": _share(pooled.of(kind, row.rate).called)}
                for kind in KINDS
            },
        }


def _share(estimate: Estimate) -> list[float | None]:
    return [_defined(estimate.mean), _defined(estimate.low), _defined(estimate.high)]


def _defined(value: float) -> float | None:
    """JSON knows no NaN: an undefined figure is null."""
    return None if math.isnan(value) else value


def crosscoder_records(cache: Path) -> list[Record]:
    """How well the judged crosscoders reconstruct, and how many latents live."""
    settings = [(setting, ARCHITECTURES[0]) for setting in (MAIN, SUPERPOSITION, CORRELATION)]
    settings += [(EQUAL_WIDTHS, recipe) for recipe in ARCHITECTURES]
    return [
        _crosscoders(setting, recipe, [measured(c, cache) for c in cases_of(setting, setting.scored, recipe)])
        for setting, recipe in settings
    ]


def _crosscoders(setting: Setting, recipe: Recipe, found: Sequence[Measured]) -> Record:
    n = len(found)
    return {
        "setting": setting.name,
        "recipe": recipe.name,
        "seeds": list(setting.scored),
        "explained": [sum(values) / n for values in zip(*(one.explained for one in found), strict=True)],
        "l0": sum(one.l0 for one in found) / n,
        "live": sum(int((one.match.frequency > 0).sum()) for one in found) / n,
    }
