"""What steering did to the answers: over-thinking, incisive thinking, and collapse told apart from both."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.bootstrap import Estimate

Regime = Literal["collapse", "over-thinking", "incisive", "changed", "unchanged", "too few prompts"]
Difference = Callable[[str, float], Estimate | None]
# A bootstrap of fewer values is no interval: percentiles of ten already are too narrow.
MIN_PROMPTS = 10
# Measures that can call an answer "changed"; their intervals share the error (Bonferroni).
_WATCHED = ("tokens", "accuracy", "coherence", "collapsed")


@dataclass(frozen=True, kw_only=True)
class RegimeBounds:
    """Where an answer counts as collapsed, and what a set of answers is called.

    An answer has collapsed if any of these holds. *Loop*: verbatim copies of one block take more than
    `max_loop` of it. Over-thinking goes over a step again in other words and with other steps between; a
    text that has stuck repeats the same tokens. *Repetition*: more than `max_repetition` of its 4-grams
    occurred before; a trace that checks each step twice repeats no more than two thirds of them, so that
    the bound lies well above. *Unfinished and repetitive*: it runs into the length limit with more than
    `max_unfinished_repetition` of its 4-grams repeated. *Incoherence*: the unsteered model finds it less
    likely per token than `coherence_margin` nats below the `coherence_percentile`-th percentile of its own
    answers to the same prompts. The percentile makes the bound that of this model and these prompts,
    temperature included; the margin leaves room for steering that makes a few unlikely words likely, which
    is its purpose.

    Args:
        max_loop: Largest share of an answer in one verbatim loop of at least three copies.
        max_repetition: Largest share of repeated 4-grams.
        max_unfinished_repetition: The same for an answer cut at the length limit.
        coherence_percentile: Percentile of the unsteered answers' mean log-probability, in [0, 100].
        coherence_margin: Nats per token below it that are still coherent.
        max_collapsed: Share of collapsed answers above which the whole set is called collapsed. The set is
            then no longer of the model's making, whatever its other figures say.
        max_accuracy_drop: Accuracy that "incisive" may lose at most. The lower end of the interval of the
            paired difference must lie above minus this. No loss at all among n prompts leaves one of 3 / n
            open (the rule of three), which must not be more; and the unsteered accuracy must have its lower
            end above twice this, or there would be nothing to lose.
        reflection: The category whose acts over-thinking adds and incisive thinking leaves out.

    Raises:
        ValueError: A share outside [0, 1], a percentile outside [0, 100], or a negative margin.
    """

    max_loop: float = 0.5
    max_repetition: float = 0.8
    max_unfinished_repetition: float = 0.5
    coherence_percentile: float = 1.0
    coherence_margin: float = 0.25
    max_collapsed: float = 0.25
    max_accuracy_drop: float = 0.05
    reflection: str = "self-reflection"

    def __post_init__(self) -> None:
        for name in ("max_loop", "max_repetition", "max_unfinished_repetition", "max_collapsed"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"RegimeBounds: {name} is a share in [0, 1], got {getattr(self, name)}.")
        if not 0 <= self.coherence_percentile <= 100:
            raise ValueError(
                f"RegimeBounds: coherence_percentile must lie in [0, 100], got {self.coherence_percentile}."
            )
        if min(self.coherence_margin, self.max_accuracy_drop) < 0:
            raise ValueError("RegimeBounds: coherence_margin and max_accuracy_drop must be at least 0.")


@typed
def collapsed(
    values: Mapping[str, Tensor], *, unsteered: Mapping[str, Tensor], bounds: RegimeBounds
) -> Bool[Tensor, " _prompts"]:
    """Which answers have collapsed, by the rules of `RegimeBounds`.

    Args:
        values: Measures of the answers: "loop", "repetition", "finished" and "coherence".
        unsteered: The same of the unsteered answers; only "coherence" is read.
        bounds: The rules' numbers.
    """
    least = coherence_bound(unsteered["coherence"], bounds=bounds)
    is_looping = values["loop"] > bounds.max_loop
    is_repetitive = values["repetition"] > bounds.max_repetition  # False where it is undefined
    is_cut = (values["finished"] == 0) & (values["repetition"] > bounds.max_unfinished_repetition)
    return is_looping | is_repetitive | is_cut | (values["coherence"] < least)


@typed
def coherence_bound(unsteered: Float[Tensor, " _prompts"], *, bounds: RegimeBounds) -> float:
    """Mean log-probability per token below which an answer is incoherent.

    Args:
        unsteered: That of each unsteered answer.
        bounds: The percentile and the margin.
    """
    at = torch.tensor(bounds.coherence_percentile / 100, dtype=unsteered.dtype)
    return float(torch.quantile(unsteered, at)) - bounds.coherence_margin


@typed
def name_regime(
    difference: Difference,
    *,
    intact: Difference,
    obstacle: str,
    share_collapsed: float,
    confidence: float,
    bounds: RegimeBounds,
) -> Regime:
    """What a set of steered answers is called, by paired differences to the unsteered ones.

    "too few prompts": fewer than `MIN_PROMPTS`. "collapse": otherwise, more answers have collapsed than
    without steering, and more than `max_collapsed`. "over-thinking": otherwise, more acts of reflection per
    answer and longer answers. "incisive": fewer acts of reflection and shorter answers, at an accuracy that
    is shown not to be lower by more than `max_accuracy_drop`; never where `incisive_obstacle` finds one.
    Both must hold on all prompts and on those where neither answer has collapsed: some loops in a set make
    its mean longer, and are no thinking. "changed": none of these, but the reflection, length, accuracy,
    coherence or share of collapsed answers differ, at a confidence corrected for their number. "unchanged":
    no difference shown, which is no proof that there is none.

    Args:
        difference: Gives a measure's paired difference at a confidence; None for a measure that was not
            taken.
        intact: The same over the prompts where neither answer has collapsed.
        obstacle: Why nothing can be shown to be incisive (see `incisive_obstacle`); empty if it can.
        share_collapsed: Share of collapsed answers.
        confidence: Confidence of each interval.
        bounds: The rules' numbers.
    """
    tokens, gone = difference("tokens", confidence), difference("collapsed", confidence)
    if tokens is None or tokens.n < MIN_PROMPTS:
        return "too few prompts"
    if _is(gone, "above") and share_collapsed > bounds.max_collapsed:
        return "collapse"
    shifts = [_shift(where, confidence=confidence, bounds=bounds) for where in (difference, intact)]
    if shifts == ["above", "above"]:
        return "over-thinking"
    is_accurate = all(
        _is_as_accurate(where("accuracy", confidence), bounds) for where in (difference, intact)
    )
    if shifts == ["below", "below"] and is_accurate and not obstacle:
        return "incisive"
    watched = (f"count/{bounds.reflection}", *_WATCHED)
    corrected = 1 - (1 - confidence) / len(watched)
    differences = [difference(name, corrected) for name in watched]
    is_changed = any(_is(d, "above") or _is(d, "below") for d in differences)
    return "changed" if is_changed else "unchanged"


@typed
def incisive_obstacle(
    accuracy: Estimate | None, *, reflections: Estimate | None, bounds: RegimeBounds
) -> str:
    """Why answers to these prompts can never be shown to be incisive; empty if they can.

    Args:
        accuracy: That of the unsteered answers, over the graded prompts; None without a grader.
        reflections: Acts of reflection per unsteered answer; None if they are not counted.
        bounds: What may be lost.
    """
    if reflections is None:
        return f"no counts of {bounds.reflection}"
    if reflections.mean == 0:
        return f"no {bounds.reflection} without steering"
    if accuracy is None or accuracy.n == 0:
        return "no grader"
    if bounds.max_accuracy_drop == 0:
        return "no number of prompts shows that no accuracy is lost"
    if 3 / accuracy.n > bounds.max_accuracy_drop:
        needed = math.ceil(3 / bounds.max_accuracy_drop)
        return f"{accuracy.n} graded prompts, at least {needed} needed"
    if not accuracy.low > 2 * bounds.max_accuracy_drop:
        return f"unsteered accuracy {accuracy.mean:.2f}"
    return ""


def _shift(
    difference: Difference, *, confidence: float, bounds: RegimeBounds
) -> Literal["above", "below"] | None:
    """Whether both reflection and length went up, or both down."""
    found = [difference(name, confidence) for name in (f"count/{bounds.reflection}", "tokens")]
    for side in ("above", "below"):
        if all(_is(estimate, side) for estimate in found):
            return side
    return None


def _is(difference: Estimate | None, side: Literal["above", "below"]) -> bool:
    if difference is None or difference.n < MIN_PROMPTS:
        return False
    return difference.is_above_zero if side == "above" else difference.is_below_zero


def _is_as_accurate(difference: Estimate | None, bounds: RegimeBounds) -> bool:
    return difference is not None and difference.low > -bounds.max_accuracy_drop
