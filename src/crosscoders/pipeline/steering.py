"""The demo's steering: one latent beside a random direction and the marker's unembedding direction."""

import torch

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.interventions.directions import random_vector_like
from crosscoders.interventions.steering import SteeringHook
from crosscoders.interventions.sweeps.directions import Direction, additive_direction, unembedding_direction
from crosscoders.interventions.sweeps.result import SweepResult
from crosscoders.interventions.sweeps.sweep import SweepOptions, sweep
from crosscoders.models import LanguageModel
from crosscoders.pipeline.bundled import TEMPERATURE
from crosscoders.zoo.arithmetic import answer
from crosscoders.zoo.base_text import prompt
from crosscoders.zoo.grader import ArithmeticGrader
from crosscoders.zoo.measure import MAX_NEW_TOKENS, held_out_problems
from crosscoders.zoo.parser import reflections
from crosscoders.zoo.text import FORMS
from crosscoders.zoo.vocabulary import END_OF_TEXT, encode, token_ids

STRENGTHS = (-0.6, -0.3, 0.0, 0.3, 0.6)
N_STEERED, STEERING_SEED = 200, 7
_REFLECTION = "self-reflection"
# Title in figures, column in tables, key in steering.json, measure of the sweep.
_SHOWN = (
    ("reflections per answer", "reflections", "reflections_per_answer", f"count/{_REFLECTION}"),
    ("accuracy", "accuracy", "accuracy", "accuracy"),
    ("tokens per answer", "tokens", "tokens_per_answer", "tokens"),
    ("finished", "finished", "finished", "finished"),
)


@typed
def steer_by_latent(
    crosscoder: Crosscoder, model: LanguageModel, latent: int, *, source: str = "distilled"
) -> SweepResult:
    """Sweep one latent and two controls of its norm over the demo's strengths on held-out problems.

    Args:
        crosscoder: The demo's crosscoder.
        model: The source's model.
        latent: The latent to steer by.
        source: Whose decoder direction it is.
    """
    problems = held_out_problems(N_STEERED, seed=STEERING_SEED)
    return sweep(
        model,
        [encode(prompt(problem)) for problem in problems],
        directions=_directions(crosscoder, model, latent, source),
        options=SweepOptions(
            strengths=STRENGTHS,
            max_new_tokens=MAX_NEW_TOKENS,
            stop_ids=(token_ids()[END_OF_TEXT],),
            temperature=TEMPERATURE,
            seed=STEERING_SEED,
        ),
        count_categories=lambda ids: {_REFLECTION: reflections(ids)},
        grade=ArithmeticGrader().grade,
        references=[str(answer(problem)) for problem in problems],
    )


def _directions(crosscoder: Crosscoder, model: LanguageModel, latent: int, source: str) -> list[Direction]:
    stop = (token_ids()["."],)  # where the question was asked that chose the latent
    unit = SteeringHook(crosscoder, {latent: 1.0}, source=source)
    hook_name, word = unit.source.hook_name, FORMS[_REFLECTION][0]
    control = random_vector_like(unit.vector, generator=torch.Generator().manual_seed(STEERING_SEED))
    return [
        additive_direction(
            unit.vector, name=f"latent {latent}", kind="latent", hook_name=hook_name, at_tokens=stop
        ),
        additive_direction(
            control, name="random direction", kind="random", hook_name=hook_name, at_tokens=stop
        ),
        unembedding_direction(
            model,
            token_ids()["\u2581" + word],
            like=unit.vector,
            name=f"unembedding of {word!r}",
            hook_name=hook_name,
            at_tokens=stop,
        ),
    ]


@typed
def steering_lines(found: SweepResult) -> list[str]:
    """The sweep as the demo prints it.

    Args:
        found: What `steer_by_latent` gave.
    """
    rows: list[tuple[str, ...]] = [
        ("direction", "strength", *(column for _, column, _, _ in _SHOWN), "  regime")
    ]
    for direction in found.directions:
        for strength in found.strengths:
            answers = found.at(direction, strength)
            means = [found.mean(answers, measure).mean for _, _, _, measure in _SHOWN]
            regime = "" if strength == 0 else f"  {found.regime(answers)}"
            rows.append((direction, *(f"{figure:.2f}" for figure in (strength, *means)), regime))
    return [
        "",
        f"Steering the distilled model on {N_STEERED} held-out problems (temperature {TEMPERATURE});",
        "at full stops; strength in units of the mean residual norm, figures per answer:",
        *(
            (f"{name:24}" + "".join(f"{cell:>13}" for cell in cells) + regime).rstrip()
            for name, *cells, regime in rows
        ),
    ]


@typed
def steering_record(found: SweepResult) -> dict[str, list[dict[str, int | float | str]]]:
    """The sweep as `steering.json` holds it: means by direction and strength, and what they are called.

    Args:
        found: What `steer_by_latent` gave.
    """
    return {
        direction: [
            {
                "strength": strength,
                "n_answers": found.n_prompts,
                **{
                    key: found.mean(found.at(direction, strength), measure).mean
                    for _, _, key, measure in _SHOWN
                },
                "regime": found.regime(found.at(direction, strength)),
            }
            for strength in found.strengths
        ]
        for direction in found.directions
    }


@typed
def steering_figure_data(found: SweepResult) -> dict[str, dict[str, list[float]]]:
    """Means by measure, direction and strength, for `steering_curves`.

    Args:
        found: What `steer_by_latent` gave.
    """
    return {
        title: {
            direction: [estimate.mean for estimate in found.curve(direction, measure)]
            for direction in found.directions
        }
        for title, _, _, measure in _SHOWN[:3]
    }
