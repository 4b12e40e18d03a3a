"""Regimes of steered answers: by which rules an answer has collapsed, and what a set of answers is called."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from crosscoders.bootstrap import Estimate
from crosscoders.interventions.sweeps.regimes import (
    RegimeBounds,
    collapsed,
    incisive_obstacle,
    name_regime,
)


def answer_values(**changed: float) -> dict[str, Tensor]:
    plain = {"loop": 0.0, "repetition": 0.1, "finished": 1.0, "coherence": -1.0}
    return {name: torch.tensor([value], dtype=torch.float64) for name, value in (plain | changed).items()}


@pytest.mark.parametrize(
    ("changed", "is_collapsed"),
    [
        ({}, False),
        ({"loop": 0.49}, False),
        ({"loop": 0.51}, True),
        ({"repetition": 0.79}, False),
        ({"repetition": 0.81}, True),
        ({"repetition": float("nan")}, False),
        ({"finished": 0.0}, False),
        ({"finished": 0.0, "repetition": 0.51}, True),
        ({"coherence": -3.2}, False),
        ({"coherence": -3.3}, True),
    ],
)
def test_an_answer_has_collapsed_by_each_rule_alone(changed: dict[str, float], is_collapsed: bool) -> None:
    unsteered = {"coherence": torch.linspace(-3.0, 0.0, 201, dtype=torch.float64)}
    bounds = RegimeBounds(coherence_percentile=0.0, coherence_margin=0.25)
    assert collapsed(answer_values(**changed), unsteered=unsteered, bounds=bounds).item() is is_collapsed


UP, DOWN, NONE = (0.5, 1.5), (-1.5, -0.5), (-0.02, 0.02)


def told(ends: dict[str, tuple[float, float] | None], n: int) -> Callable[[str, float], Estimate | None]:
    """Differences with these intervals, whatever the confidence."""

    def difference(measure: str, confidence: float) -> Estimate | None:
        found = ends[measure]
        if found is None:
            return None
        return Estimate(mean=sum(found) / 2, low=found[0], high=found[1], n=n)

    return difference


def regime_of(found: dict[str, Any], *, share: float = 0.0, n: int = 100, **intact: Any) -> str:
    bounds, graded = RegimeBounds(), found["accuracy"] is not None
    accuracy = Estimate(mean=0.9, low=0.85, high=0.95, n=n) if graded else None
    reflections = Estimate(mean=1.0, low=0.8, high=1.2, n=n)
    return name_regime(
        told(found, n),
        intact=told(found | intact.get("ends", {}), intact.get("n_intact", n)),
        obstacle=incisive_obstacle(accuracy, reflections=reflections, bounds=bounds),
        share_collapsed=share,
        confidence=0.95,
        bounds=bounds,
    )


def ends_of(reflections: Any, tokens: Any, accuracy: Any, collapsed: Any = NONE) -> dict[str, Any]:
    return {
        "count/self-reflection": reflections,
        "tokens": tokens,
        "accuracy": accuracy,
        "collapsed": collapsed,
        "coherence": NONE,
    }


@pytest.mark.parametrize(
    ("reflections", "tokens", "accuracy", "with_collapse", "n", "regime"),
    [
        (UP, UP, DOWN, (NONE, 0.0), 100, "over-thinking"),
        (UP, UP, DOWN, (UP, 0.2), 100, "over-thinking"),
        (UP, UP, DOWN, (UP, 0.3), 100, "collapse"),
        (UP, UP, NONE, (NONE, 0.3), 100, "over-thinking"),
        (DOWN, DOWN, NONE, (NONE, 0.0), 100, "incisive"),
        (DOWN, DOWN, NONE, (NONE, 0.0), 59, "changed"),
        (DOWN, DOWN, (-0.06, 0.02), (NONE, 0.0), 100, "changed"),
        (DOWN, DOWN, None, (NONE, 0.0), 100, "changed"),
        (DOWN, DOWN, UP, (NONE, 0.0), 100, "incisive"),
        (UP, NONE, NONE, (NONE, 0.0), 100, "changed"),
        (NONE, DOWN, NONE, (NONE, 0.0), 100, "changed"),
        (NONE, NONE, NONE, (NONE, 0.0), 100, "unchanged"),
        (None, UP, None, (NONE, 0.0), 100, "changed"),
        (UP, UP, DOWN, (UP, 0.3), 9, "too few prompts"),
        (NONE, UP, NONE, (NONE, 0.0), 9, "too few prompts"),
    ],
)
def test_regimes_follow_the_rules(reflections, tokens, accuracy, with_collapse, n, regime) -> None:
    ends = ends_of(reflections, tokens, accuracy, with_collapse[0])
    assert regime_of(ends, share=with_collapse[1], n=n) == regime


def test_collapsed_answers_alone_make_no_regime() -> None:
    more, fewer = ends_of(UP, UP, DOWN), ends_of(DOWN, DOWN, NONE)
    assert regime_of(more, ends={"tokens": NONE}) == "changed"
    assert regime_of(more, ends={"count/self-reflection": NONE}) == "changed"
    assert regime_of(more, n_intact=9) == "changed"
    assert regime_of(more, n_intact=10) == "over-thinking"
    assert regime_of(fewer, ends={"tokens": NONE}) == "changed"
    assert regime_of(fewer, ends={"accuracy": (-0.06, 0.02)}) == "changed"


@pytest.mark.parametrize(
    ("accuracy", "n", "reflections", "reason"),
    [
        ((0.85, 0.95), 60, 1.0, ""),
        ((0.85, 0.95), 50, 1.0, "50 graded prompts, at least 60 needed"),
        ((0.1, 0.2), 100, 1.0, "unsteered accuracy 0.15"),
        ((0.11, 0.2), 100, 1.0, ""),
        (None, 0, 1.0, "no grader"),
        ((0.85, 0.95), 60, 0.0, "no self-reflection without steering"),
        ((0.85, 0.95), 60, None, "no counts of self-reflection"),
    ],
)
def test_incisive_thinking_needs_what_could_show_it(accuracy, n, reflections, reason) -> None:
    graded = None
    if accuracy is not None:
        graded = Estimate(mean=sum(accuracy) / 2, low=accuracy[0], high=accuracy[1], n=n)
    acts = None
    if reflections is not None:
        acts = Estimate(mean=reflections, low=0.0, high=2.0, n=100)
    assert incisive_obstacle(graded, reflections=acts, bounds=RegimeBounds()) == reason


def test_a_lossless_drop_cannot_be_shown_by_any_number_of_prompts() -> None:
    all_right = Estimate(mean=1.0, low=1.0, high=1.0, n=10**6)
    found = incisive_obstacle(all_right, reflections=all_right, bounds=RegimeBounds(max_accuracy_drop=0.0))
    assert found == "no number of prompts shows that no accuracy is lost"


@pytest.mark.parametrize(
    "bad", [{"max_loop": 2.0}, {"coherence_percentile": 101.0}, {"coherence_margin": -1.0}]
)
def test_unusable_bounds_raise(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="RegimeBounds"):
        RegimeBounds(**bad)
