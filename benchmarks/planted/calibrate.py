"""Choose the verdict's thresholds on seeds 0 to 4: each halfway between the two groups that it separates."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.planted.decouple import decoupled
from benchmarks.planted.measure import Measured, held_out, measured
from benchmarks.planted.methods import evidence_of
from benchmarks.planted.settings import EQUAL_WIDTHS, MAIN, Case, calibration_cases
from crosscoders.crosscoder import Crosscoder
from crosscoders.diffing.planted import Kind
from crosscoders.diffing.verdicts import Thresholds, gather_evidence

MIN_RATE = 0.005  # below it intervals are wide, and what a test would say is mostly "undecided"
MIN_FIRINGS = Thresholds().min_firings
QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)
N_SPLIT = 16  # shared latents of each world that are made into a decoupled pair

# Threshold: what must lie below it (kinds, column), and what above. A line for re-use needs the verdict's own
# column on both sides; one for the ratio compares the ends of the intervals, as the rule does.
LINES: dict[str, tuple[tuple[tuple[Kind, ...], str], tuple[tuple[Kind, ...], str]]] = {
    "absent": ((("exclusive", "reused"), "ratio_high"), (("shared", "rescaled", "rotated"), "ratio_low")),
    "reused": ((("exclusive",), "reuse_cosine"), (("reused",), "reuse_cosine")),
    "rotated": ((("rotated",), "kappa"), (("shared", "rescaled"), "kappa")),
}


def calibrate(cache: Path) -> dict[str, Any]:
    """Thresholds with the quantiles of the groups that they separate."""
    all_cases = calibration_cases()
    main, equal = ([case for case in all_cases if case.setting is which] for which in (MAIN, EQUAL_WIDTHS))
    lines = {}
    for name, sides in LINES.items():
        cases = equal if name == "rotated" else main
        found = [measured(case, cache) for case in cases]
        lines[name] = _line(*(_pooled(cases, found, *side) for side in sides))
    found = [measured(case, cache) for case in main]
    exclusive = _pooled(main, found, ("exclusive",), "partner_correlation")
    absent = lines["absent"]["threshold"]
    halves = [_halves(case, one, cache, absent=absent) for case, one in zip(main, found, strict=True)]
    return lines | {"partner": _line(exclusive, torch.cat(halves))}


def _pooled(cases: Sequence[Case], found: Sequence[Measured], kinds: tuple[Kind, ...], column: str) -> Tensor:
    """A column of the latents of recovered features of these kinds, over all worlds, where it is defined."""
    values = torch.cat(
        [
            evidence_of(one)[column][latents_of(case, one, kinds)]
            for case, one in zip(cases, found, strict=True)
        ]
    ).double()
    return values[~values.isnan()]


def latents_of(case: Case, found: Measured, kinds: tuple[Kind, ...]) -> Tensor:
    """Latents of recovered features of these kinds that are on at 0.5% of the tokens or more."""
    features = case.draw_world().features
    wanted = torch.tensor([f.kind in kinds and f.rate >= MIN_RATE * (1 - 1e-9) for f in features])
    return found.match.latent[wanted & found.match.is_recovered]


def _halves(case: Case, found: Measured, cache: Path, *, absent: float) -> Tensor:
    """Partner correlation of halves of shared latents that the test for silence would let through."""
    shared = latents_of(case, found, ("shared",))[:N_SPLIT]
    split = decoupled(Crosscoder.from_pretrained(case.folder(cache)), shared, case)
    batches = [batch for batch, _ in held_out(case)]
    evidence = gather_evidence(split, lambda: batches).select(torch.arange(2 * len(shared)))
    is_silent = (evidence["ratio_high"] < absent) & (evidence["n_firings"] >= MIN_FIRINGS)
    values = evidence["partner_correlation"][is_silent].double()
    return values[~values.isnan()]


def _line(below: Tensor, above: Tensor) -> dict[str, Any]:
    """The middle between the 95% quantile of what lies below and the 5% quantile of what lies above."""
    quantiles = torch.tensor(QUANTILES, dtype=torch.float64)
    low, high = below.quantile(quantiles), above.quantile(quantiles)
    return {
        "threshold": round(float(low[3] + high[1]) / 2, 2),
        "below": dict(zip(map(str, QUANTILES), low.tolist(), strict=True)) | {"n": len(below)},
        "above": dict(zip(map(str, QUANTILES), high.tolist(), strict=True)) | {"n": len(above)},
    }


def calibration_lines(found: dict[str, Any]) -> list[str]:
    """The quantiles as text."""
    lines = [
        f"{'threshold':<10} {'value':>6}   {'group':<6} {'n':>5} " + "".join(f"{q:>8.0%}" for q in QUANTILES)
    ]
    for name, line in found.items():
        for group in ("below", "above"):
            shown = "".join(f"{line[group][str(q)]:>8.3f}" for q in QUANTILES)
            value = f"{line['threshold']:>6.2f}" if group == "below" else " " * 6
            lines.append(
                f"{name if group == 'below' else '':<10} {value}   {group:<6} {line[group]['n']:>5} {shown}"
            )
    return lines
