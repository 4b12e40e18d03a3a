"""Steer generation at several strengths, beside a random direction and the marker's unembedding direction."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from crosscoders._typing import typed
from crosscoders.interventions import AddVector, SteeringHook
from crosscoders.models import LanguageModel
from crosscoders.zoo.arithmetic import Problem
from crosscoders.zoo.measure import Behaviour, answer_problems, behaviour


@dataclass(frozen=True, kw_only=True)
class SteeringSweep:
    """Behavior per direction and strength.

    Args:
        strengths: In units of the source's mean residual norm.
        behaviours: For each direction, one entry per strength.
    """

    strengths: tuple[float, ...]
    behaviours: Mapping[str, tuple[Behaviour, ...]]

    @typed
    def values(self, measure: str) -> dict[str, list[float]]:
        """One figure per direction and strength.

        Args:
            measure: A field of `Behaviour`.
        """
        return {name: [float(getattr(b, measure)) for b in row] for name, row in self.behaviours.items()}


@typed
def steering_sweep(
    model: LanguageModel,
    problems: Sequence[Problem],
    *,
    hooks: Mapping[str, Callable[[float], SteeringHook | AddVector]],
    strengths: Sequence[float],
    temperature: float,
    seed: int,
) -> SteeringSweep:
    """Answer the same problems under each direction and strength, with the same seed each time.

    Args:
        model: Model to steer.
        problems: Problems to ask; none of them may have served to choose a direction.
        hooks: For each direction, what steers by it at a given strength.
        strengths: Strengths in the order of the result.
        temperature: Sampling temperature; 0 decodes greedily.
        seed: Seed of every run's sampling.

    Returns:
        Behavior by direction, in the order of `strengths`.
    """
    found: dict[str, tuple[Behaviour, ...]] = {}
    for name, hook in hooks.items():
        row = []
        for strength in strengths:
            with hook(strength).on(model):
                generator = torch.Generator().manual_seed(seed)
                answers = answer_problems(model, problems, temperature=temperature, generator=generator)
            row.append(behaviour(problems, answers))
        found[name] = tuple(row)
    return SteeringSweep(strengths=tuple(strengths), behaviours=found)
