"""Steering the distilled model by one latent per category: over-thinking, incisive thinking, controls."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosscoders._io import atomic_write_text
from crosscoders._typing import typed
from crosscoders.experiments.steering.verdict import own_category_lines, steering_table, steering_verdict
from crosscoders.experiments.study import Finding, Study
from crosscoders.interventions.steering import SteeringHook
from crosscoders.interventions.sweeps.directions import (
    Direction,
    DirectionKind,
    additive_direction,
    random_directions,
    unembedding_direction,
)
from crosscoders.interventions.sweeps.regimes import RegimeBounds
from crosscoders.interventions.sweeps.result import SweepResult
from crosscoders.interventions.sweeps.sweep import SweepOptions, sweep
from crosscoders.report.figures.steering import SteeringCurve, steering_panels
from crosscoders.report.tables import write_csv

_CLAIM = (
    "Adding the decoder direction of a self-reflection latent makes the distilled model over-think; adding "
    "that of a deductive latent makes it think incisively, without redundant checks."
)
REFLECTION, DEDUCTIVE = "self-reflection", "deductive"
_REFLECTIONS = "reflections per answer"
_PANELS = {
    "accuracy": "accuracy",
    "tokens per answer": "tokens",
    "repeated 4-grams (share)": "repetition",
    "coherence (nats per token, unsteered model)": "coherence",
    "collapsed answers (share)": "collapsed",
}


@dataclass(frozen=True, kw_only=True)
class SteeringOptions:
    """What the steering experiment does; on the bundled pair about three minutes on one core.

    Args:
        strengths: In units of the mean residual norm; 0 is always run.
        categories: Categories whose latents are tested; the latents of the others are controls.
        n_prompts: Prompts answered each time, the material's first; where there are fewer, all. If steering
            turns 6% of the answers from right to wrong or back and costs no accuracy, 200 prompts show that
            it costs less than 5 points with a power of 0.8, 100 with 0.6.
        n_random: Random control directions.
        with_unembedding: Also steer by the unembedding direction of the most frequent marker word.
        with_base: Also steer the base model, by its own decoder directions.
        n_bootstrap: Resamples of the prompts behind each interval.
        n_shown: Prompts whose answers are written out, the first ones.
        bounds: What counts as collapsed, over-thinking and incisive.
        seed: Seed of sampling, controls and intervals.

    Raises:
        ValueError: A number out of range, or no categories.
    """

    strengths: tuple[float, ...] = (-0.6, -0.3, 0.0, 0.3, 0.6)
    categories: tuple[str, ...] = (REFLECTION, DEDUCTIVE)
    n_prompts: int = 200
    n_random: int = 3
    with_unembedding: bool = True
    with_base: bool = True
    n_bootstrap: int = 2000
    n_shown: int = 3
    bounds: RegimeBounds = field(default_factory=RegimeBounds)
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.n_prompts, self.n_bootstrap) < 1 or min(self.n_random, self.n_shown) < 0:
            raise ValueError(
                "SteeringOptions: n_prompts and n_bootstrap must be at least 1, n_random and n_shown at "
                f"least 0; got {self.n_prompts}, {self.n_bootstrap}, {self.n_random}, {self.n_shown}."
            )
        if not self.categories or not any(strength != 0 for strength in self.strengths):
            raise ValueError("SteeringOptions: needs at least one category and one strength other than 0.")


@typed
def steering_experiment(study: Study, options: SteeringOptions, *, folder: Path) -> Finding:
    """Sweep one latent per category over strengths in the distilled model, and in the base model.

    The latent of a category is the one that best tells its onset on the held-out text; prompts are apart
    from that text. Controls have the same norm and go through the same sweep: random directions, the
    latents of the categories not tested, and the unembedding direction of the marker word. Intervals
    resample prompts.

    Args:
        study: A run with prompts.
        options: What to do.
        folder: Gets `steering.csv` (every figure), `answers.jsonl` (answers to read) and the figures.

    Returns:
        The finding.

    Raises:
        ValueError: No prompts, or no category with a latent.
    """
    chosen, notes = _latents(study, options)
    directions = _directions(study, study.distilled, chosen, options)
    sweeps = {study.distilled: _sweep(study, study.distilled, directions, options)}
    if options.with_base:
        sweeps[study.base] = _sweep(
            study, study.base, _directions(study, study.base, chosen, options), options
        )
    write_csv(
        folder / "steering.csv",
        [{"model": model, **row} for model, found in sweeps.items() for row in found.rows()],
    )
    shown = [line for model, found in sweeps.items() for line in _answers(study, model, found)]
    atomic_write_text(folder / "answers.jsonl", "".join(json.dumps(line) + "\n" for line in shown))
    figures = [_figure(found, model, folder) for model, found in sweeps.items()]
    tested = {
        category: _direction_name(category, latent)
        for category, latent in chosen.items()
        if category in options.categories
    }
    names = {category: _direction_name(category, latent) for category, latent in chosen.items()}
    return Finding(
        name="steering",
        title="Steering by one latent per category",
        claim=_CLAIM,
        verdict=steering_verdict(
            sweeps[study.distilled],
            reflection=tested.get(options.bounds.reflection),
            deductive=tested.get(DEDUCTIVE),
            base=sweeps.get(study.base) if options.with_base else None,
        ),
        lines=(*_head(study, options, sweeps), *notes, *_tables(sweeps, names)),
        figures=tuple(figures),
        tables=("steering.csv",),
    )


def _direction_name(category: str, latent: int) -> str:
    """How a category's latent is called in tables and figures."""
    return f"{category} (latent {latent})"


def _latents(study: Study, options: SteeringOptions) -> tuple[dict[str, int], list[str]]:
    """One latent per category, tested ones first, and what could not be had."""
    asked = [
        name.removeprefix("auroc/onset/") for name in study.latents.columns if name.startswith("auroc/onset/")
    ]
    chosen: dict[str, int] = {}
    notes = []
    for category in dict.fromkeys((*options.categories, *asked)):
        if category not in asked or bool(study.latents[f"auroc/onset/{category}"].isnan().all()):
            notes.append(f"Skipped {category}: it never starts in the held-out text.")
            continue
        latent = study.latents.best(f"onset/{category}")
        taken = next((name for name, other in chosen.items() if other == latent), None)
        if taken is not None:
            notes.append(f"Skipped {category}: its latent {latent} is already that of {taken}.")
            continue
        chosen[category] = latent
    if not any(category in chosen for category in options.categories):
        raise ValueError(
            f"steering_experiment: none of the categories {list(options.categories)} starts in the held-out "
            f"text; it has {asked}."
        )
    return chosen, notes


def _directions(
    study: Study, model: str, chosen: Mapping[str, int], options: SteeringOptions
) -> list[Direction]:
    """Latents and controls for one model, all of the norm that strength 1 stands for there."""
    where: dict[str, Any] = {"at_tokens": study.material.steer_at_tokens, "after": study.material.steer_after}
    found = []
    unit = None
    for category, latent in chosen.items():
        unit = SteeringHook(study.crosscoder, {latent: 1.0}, source=model)
        kind: DirectionKind = "latent" if category in options.categories else "wrong_category"
        name, hook = _direction_name(category, latent), unit.source.hook_name
        found.append(additive_direction(unit.vector, name=name, kind=kind, hook_name=hook, **where))
    assert unit is not None  # `_latents` chose at least one
    hook, generator = unit.source.hook_name, torch.Generator().manual_seed(options.seed)
    if options.n_random:
        found += random_directions(
            unit.vector, n=options.n_random, generator=generator, hook_name=hook, **where
        )
    word = _marker_word(study, options.bounds.reflection) if options.with_unembedding else None
    if word is not None:
        token, text = word
        found.append(
            unembedding_direction(
                study.sources.models[model],
                token,
                like=unit.vector,
                name=f"unembedding of {text!r}",
                hook_name=hook,
                **where,
            )
        )
    return found


def _marker_word(study: Study, category: str) -> tuple[int, str] | None:
    """The token that most often opens acts of a category in the held-out text."""
    opens = study.material.markers.get(category)
    if opens is None or not bool(opens.any()) or study.sources.tokenizer is None:
        return None
    token = int(study.corpus.held_out[opens].mode().values)
    return token, study.sources.tokenizer.decode([token]).strip()


def _sweep(
    study: Study, model: str, directions: Sequence[Direction], options: SteeringOptions
) -> SweepResult:
    material = study.material
    prompts = list(material.prompts)[: options.n_prompts]
    if not prompts:
        raise ValueError("steering_experiment: the study's material has no prompts.")
    is_graded = material.grade is not None and any(prompt.reference is not None for prompt in prompts)
    return sweep(
        study.sources.models[model],
        [prompt.ids for prompt in prompts],
        directions=directions,
        options=SweepOptions(
            strengths=options.strengths,
            max_new_tokens=material.max_new_tokens,
            stop_ids=material.stop_ids,
            temperature=material.temperature,
            seed=options.seed,
            n_bootstrap=options.n_bootstrap,
            keep_answers=options.n_shown,
            bounds=options.bounds,
        ),
        count_categories=material.count_categories,
        grade=material.grade if is_graded else None,
        references=[prompt.reference for prompt in prompts] if is_graded else None,
    )


def _answers(study: Study, model: str, found: SweepResult) -> list[dict[str, Any]]:
    """Answers to read: the first prompts under every direction and strength."""
    tokenizer = study.sources.tokenizer
    lines = []
    for answers in (found.unsteered, *found.steered):
        for at, text in enumerate(answers.texts):
            prompt = study.material.prompts[at]
            lines.append(
                {
                    "model": model,
                    "direction": answers.direction,
                    "strength": answers.strength,
                    "regime": found.regime(answers),
                    "prompt": "" if tokenizer is None else tokenizer.decode(list(prompt.ids)),
                    "reference": prompt.reference,
                    "answer": text,
                    **{name: _plain(values[at]) for name, values in answers.values.items()},
                }
            )
    return lines


def _plain(value: Tensor) -> float | None:
    number = float(value)
    return None if math.isnan(number) else number


def _figure(found: SweepResult, model: str, folder: Path) -> str:
    """Draw one model's sweep."""
    drawn = [name for name, kind in found.directions.items() if kind != "random"]
    random = [name for name, kind in found.directions.items() if kind == "random"]
    panels, bands = {}, {}
    for title, measure in {_REFLECTIONS: f"count/{found.bounds.reflection}", **_PANELS}.items():
        if measure not in found.measures:
            continue
        panels[title] = {name: _curve(found, name, measure) for name in drawn}
        if random:
            means = [[point.mean for point in found.curve(name, measure)] for name in random]
            columns = list(zip(*means, strict=True))
            bands[title] = ([min(column) for column in columns], [max(column) for column in columns])
    name = f"steering_{model}"
    steering_panels(
        panels,
        list(found.strengths),
        folder / f"{name}.png",
        bands=bands,
        band_label=f"{len(random)} random directions (range)",
        title=f"Steering {model}: {found.n_prompts} prompts, 95% intervals over prompts",
    )
    return name


def _curve(found: SweepResult, direction: str, measure: str) -> SteeringCurve:
    points = found.curve(direction, measure)
    at = [found.at(direction, strength) for strength in found.strengths]
    return SteeringCurve(
        means=[point.mean for point in points],
        lows=[point.low for point in points],
        highs=[point.high for point in points],
        is_collapsed=[found.regime(answers) == "collapse" for answers in at],
    )


def _head(study: Study, options: SteeringOptions, sweeps: Mapping[str, SweepResult]) -> list[str]:
    n = sweeps[study.distilled].n_prompts
    where = "at all positions"
    if study.material.steer_at_tokens is not None or study.material.steer_after is not None:
        where = "at the positions that the material names"
    return [
        f"{n} prompts at temperature {study.material.temperature:g}, steered {where}; strength in units of "
        "the mean residual norm; 95% intervals resample prompts.",
        "Each category's latent is the one whose activation best tells (AUROC) its onset on held-out text.",
        "Controls: latents of categories other than "
        f"{', '.join(options.categories)}; {options.n_random} random directions"
        f"{'; the marker word in the unembedding' if options.with_unembedding else ''}.",
    ]


def _tables(sweeps: Mapping[str, SweepResult], names: Mapping[str, str]) -> list[str]:
    lines = []
    for model, found in sweeps.items():
        lines += ["", f"{model}:", *steering_table(found), *own_category_lines(found, names)]
    return lines
