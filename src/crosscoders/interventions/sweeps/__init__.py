"""Steering over strengths: the same prompts under each direction, measured, graded and judged."""

from crosscoders.interventions.sweeps.directions import (
    Direction,
    additive_direction,
    random_directions,
    unembedding_direction,
)
from crosscoders.interventions.sweeps.graders import BoxedGrader, Grader, GSM8KGrader
from crosscoders.interventions.sweeps.regimes import RegimeBounds
from crosscoders.interventions.sweeps.result import SteeredAnswers, SweepResult
from crosscoders.interventions.sweeps.sweep import SweepOptions, sweep

__all__ = [
    "BoxedGrader",
    "Direction",
    "GSM8KGrader",
    "Grader",
    "RegimeBounds",
    "SteeredAnswers",
    "SweepOptions",
    "SweepResult",
    "additive_direction",
    "random_directions",
    "sweep",
    "unembedding_direction",
]
