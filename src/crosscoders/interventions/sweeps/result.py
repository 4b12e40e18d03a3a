"""What a steering sweep found: per-prompt values, intervals over prompts, and the regime of each strength."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.bootstrap import Estimate, bootstrap_counts, bootstrap_mean
from crosscoders.interventions.sweeps.regimes import (
    Regime,
    RegimeBounds,
    collapsed,
    incisive_obstacle,
    name_regime,
)

UNSTEERED = "unsteered"


@dataclass(frozen=True, kw_only=True)
class SteeredAnswers:
    """The answers under one direction and strength.

    Args:
        direction: Name of the direction; "unsteered" at strength 0.
        kind: Its kind; "unsteered" at strength 0.
        strength: Its strength.
        values: One value per prompt for each measure, NaN where it is undefined: "tokens" (length),
            "finished", "repetition", "loop", "coherence", "collapsed"; with a grader "accuracy"; with
            categories "count/<category>" per answer and "rate/<category>" per 100 tokens.
        answers: Token ids of the answers to the first prompts, as many as were to be kept.
        texts: The same as text; empty strings without a decoder.
    """

    direction: str
    kind: str
    strength: float
    values: Mapping[str, Float[Tensor, " _prompts"]]
    answers: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """All answers of a sweep, compared prompt by prompt with the unsteered ones.

    Args:
        unsteered: The answers at strength 0, which are the same for all directions.
        steered: The others, direction by direction in the order of the strengths.
        strengths: All strengths, 0 included, in the order asked for.
        bounds: The rules that regimes follow.
        n_bootstrap: Resamples of the prompts behind each interval.
        confidence: Confidence of each interval.
        seed: Seed of the resampling.
    """

    unsteered: SteeredAnswers
    steered: tuple[SteeredAnswers, ...]
    strengths: tuple[float, ...]
    bounds: RegimeBounds
    n_bootstrap: int
    confidence: float
    seed: int

    @property
    def n_prompts(self) -> int:
        """Prompts answered under each direction and strength."""
        return len(self.unsteered.values["tokens"])

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the measures."""
        return tuple(self.unsteered.values)

    @property
    def directions(self) -> dict[str, str]:
        """Kind of each direction, by its name."""
        return {answers.direction: answers.kind for answers in self.steered}

    @typed
    def at(self, direction: str, strength: int | float) -> SteeredAnswers:
        """The answers under one direction and strength; at strength 0 the unsteered ones.

        Args:
            direction: Name of the direction.
            strength: One of the strengths.

        Returns:
            The answers with their measures.

        Raises:
            KeyError: No such direction or strength.
        """
        if direction not in self.directions or strength not in self.strengths:
            raise KeyError(
                f"SweepResult: no answers for {direction!r} at {strength}; the directions are "
                f"{list(self.directions)}, the strengths {list(self.strengths)}."
            )
        if strength == 0:
            return self.unsteered
        return next(a for a in self.steered if (a.direction, a.strength) == (direction, strength))

    @typed
    def mean(self, answers: SteeredAnswers, measure: str) -> Estimate:
        """Mean of a measure over prompts.

        Args:
            answers: Some answers of this sweep.
            measure: Name of the measure.

        Returns:
            The mean and its interval, in the unit of the measure.

        Raises:
            KeyError: The measure was not taken.
        """
        return bootstrap_mean(self._values(answers, measure), self._counts, confidence=self.confidence)

    @typed
    def difference(
        self,
        answers: SteeredAnswers,
        measure: str,
        *,
        confidence: float | None = None,
        to: SteeredAnswers | None = None,
        only_intact: bool = False,
    ) -> Estimate:
        """Mean over prompts of a measure minus its value in other answers to the same prompt.

        Args:
            answers: Some answers of this sweep.
            measure: Name of the measure.
            confidence: That of the interval; the sweep's own if None.
            to: The other answers; the unsteered ones if None.
            only_intact: Leave the prompts out where one of the two answers has collapsed.

        Returns:
            The mean difference and its interval, in the unit of the measure.

        Raises:
            KeyError: The measure was not taken.
        """
        other = self.unsteered if to is None else to
        paired = self._values(answers, measure) - self._values(other, measure)
        if only_intact:
            is_intact = (answers.values["collapsed"] == 0) & (other.values["collapsed"] == 0)
            paired = paired.where(is_intact, float("nan"))
        level = self.confidence if confidence is None else confidence
        return bootstrap_mean(paired, self._counts, confidence=level)

    @typed
    def regime(self, answers: SteeredAnswers) -> Regime:
        """What the answers are called (see `name_regime`); the unsteered ones are "unchanged".

        Args:
            answers: Some answers of this sweep.

        Returns:
            Name of the regime.
        """
        if answers is self.unsteered:
            return "unchanged"

        def difference(measure: str, confidence: float, *, only_intact: bool = False) -> Estimate | None:
            if measure not in self.measures:
                return None
            return self.difference(answers, measure, confidence=confidence, only_intact=only_intact)

        return name_regime(
            difference,
            intact=functools.partial(difference, only_intact=True),
            obstacle=self.incisive_obstacle,
            share_collapsed=float(answers.values["collapsed"].mean()),
            confidence=self.confidence,
            bounds=self.bounds,
        )

    @functools.cached_property
    def incisive_obstacle(self) -> str:
        """Why no answers of this sweep can be shown to be incisive, or nothing (see `incisive_obstacle`)."""
        accuracy, reflections = (
            self.mean(self.unsteered, measure) if measure in self.measures else None
            for measure in ("accuracy", f"count/{self.bounds.reflection}")
        )
        return incisive_obstacle(accuracy, reflections=reflections, bounds=self.bounds)

    @typed
    def curve(self, direction: str, measure: str) -> list[Estimate]:
        """A measure's mean at every strength, in their order.

        Args:
            direction: Name of the direction.
            measure: Name of the measure.

        Returns:
            One estimate per strength.

        Raises:
            KeyError: No such direction or measure.
        """
        return [self.mean(self.at(direction, strength), measure) for strength in self.strengths]

    @typed
    def rows(self) -> list[dict[str, Any]]:
        """A table with one row per direction, strength and measure, the unsteered answers first.

        Returns:
            Rows for `write_csv`: direction, kind, strength, regime, measure, the mean with its interval and
            number of prompts, and the paired difference to strength 0 with its interval (undefined for the
            unsteered answers themselves).
        """
        nothing = Estimate(mean=float("nan"), low=float("nan"), high=float("nan"), n=0)
        rows = []
        for answers in (self.unsteered, *self.steered):
            regime = self.regime(answers)
            for measure in self.measures:
                mean = self.mean(answers, measure)
                change = nothing if answers is self.unsteered else self.difference(answers, measure)
                rows.append(
                    {
                        "direction": answers.direction,
                        "kind": answers.kind,
                        "strength": answers.strength,
                        "regime": regime,
                        "measure": measure,
                        "n_prompts": mean.n,
                        "mean": mean.mean,
                        "low": mean.low,
                        "high": mean.high,
                        "difference": change.mean,
                        "difference_low": change.low,
                        "difference_high": change.high,
                    }
                )
        return rows

    @functools.cached_property
    def _counts(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return bootstrap_counts(self.n_prompts, n_bootstrap=self.n_bootstrap, generator=generator)

    def _values(self, answers: SteeredAnswers, measure: str) -> Tensor:
        if measure not in answers.values:
            raise KeyError(f"SweepResult has no measure {measure!r}; it has {list(self.measures)}.")
        return answers.values[measure]


@typed
def with_collapsed(
    answers: SteeredAnswers, *, unsteered: Mapping[str, Tensor], bounds: RegimeBounds
) -> SteeredAnswers:
    """The same answers with the measure "collapsed".

    Args:
        answers: Answers with the other measures.
        unsteered: Measures of the unsteered answers.
        bounds: The rules.
    """
    has_collapsed = collapsed(answers.values, unsteered=unsteered, bounds=bounds).double()
    return SteeredAnswers(
        direction=answers.direction,
        kind=answers.kind,
        strength=answers.strength,
        values={**answers.values, "collapsed": has_collapsed},
        answers=answers.answers,
        texts=answers.texts,
    )
