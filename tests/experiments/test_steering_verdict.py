"""What the steering experiment says of a sweep: it follows the figures, either way."""

import torch
from torch import Tensor

from crosscoders.experiments.steering.verdict import own_category_lines, steering_table, steering_verdict
from crosscoders.interventions.sweeps.regimes import RegimeBounds
from crosscoders.interventions.sweeps.result import UNSTEERED, SteeredAnswers, SweepResult

N = 80
SHIFTS: dict[str, tuple[float, float, float, float]] = {  # reflections, tokens, accuracy, collapsed
    "over-thinking": (2.0, 30.0, -0.2, 0.0),
    "incisive": (-1.0, -10.0, 0.0, 0.0),
    "collapse": (2.0, 30.0, -0.5, 1.0),
    "unchanged": (0.0, 0.0, 0.0, 0.0),
}


def answers(direction: str, kind: str, strength: float, *, regime: str = "unchanged") -> SteeredAnswers:
    reflections, tokens, accuracy, collapsed = SHIFTS[regime]
    values: dict[str, Tensor] = {
        "count/self-reflection": torch.full((N,), 1.0 + reflections),
        "count/deductive": torch.full((N,), 3.0),
        "tokens": 40 + tokens + torch.arange(N) % 3,
        "accuracy": torch.full((N,), 0.9 + accuracy),
        "coherence": torch.full((N,), -1.0),
        "collapsed": torch.full((N,), collapsed),
    }
    values = {name: value.double() for name, value in values.items()}
    return SteeredAnswers(
        direction=direction, kind=kind, strength=strength, values=values, answers=(), texts=()
    )


def sweep_of(regimes: dict[tuple[str, float], str]) -> SweepResult:
    """Three directions at -0.5 and 0.5, "unchanged" unless said otherwise."""
    kinds = {"reflect": "latent", "deduce": "latent", "random 1": "random"}
    steered = [
        answers(name, kind, strength, regime=regimes.get((name, strength), "unchanged"))
        for name, kind in kinds.items()
        for strength in (-0.5, 0.5)
    ]
    return SweepResult(
        unsteered=answers(UNSTEERED, UNSTEERED, 0.0),
        steered=tuple(steered),
        strengths=(-0.5, 0.0, 0.5),
        bounds=RegimeBounds(),
        n_bootstrap=50,
        confidence=0.95,
        seed=0,
    )


def test_the_papers_effects_are_found_where_they_are() -> None:
    found = sweep_of(
        {
            ("reflect", 0.5): "over-thinking",
            ("reflect", -0.5): "incisive",
            ("deduce", 0.5): "incisive",
            ("deduce", -0.5): "collapse",
        }
    )
    base = sweep_of({("reflect", 0.5): "over-thinking"})
    assert steering_verdict(found, reflection="reflect", deductive="deduce", base=base) == (
        "Over-thinking shows with reflect above 0 at +0.5 (beyond every random direction at +0.5); incisive "
        "thinking with deduce above 0 at +0.5 (beyond every random direction at +0.5) and with reflect below "
        "0 at -0.5 (beyond every random direction at -0.5). Of 2 control settings 0 over-think and 0 are "
        "incisive; answers collapse with deduce at -0.5; in the base model reflect adds self-reflection at "
        "+0.5."
    )


def test_an_effect_that_random_directions_have_too_is_no_effect() -> None:
    found = sweep_of({("random 1", -0.5): "incisive", ("deduce", 0.5): "incisive"})
    verdict = steering_verdict(found, reflection="reflect", deductive="deduce", base=None)
    assert "incisive thinking with deduce above 0 at +0.5 (no more than random directions)" in verdict
    assert "1 are incisive (random 1 at -0.5)" in verdict


def test_absence_is_said_too() -> None:
    verdict = steering_verdict(sweep_of({}), reflection="reflect", deductive=None, base=sweep_of({}))
    assert verdict == (
        "Over-thinking shows with reflect above 0 at none of 1 strengths; incisive thinking with nothing (no "
        "latent for it) and with reflect below 0 at none of 1 strengths. Of 4 control settings 0 over-think "
        "and 0 are incisive; answers collapse with no setting; in the base model reflect adds "
        "self-reflection at no strength."
    )


def test_the_table_has_a_line_per_setting_and_own_categories_have_theirs() -> None:
    found = sweep_of({("reflect", 0.5): "over-thinking"})
    table = steering_table(found)
    assert len(table) == 1 + 1 + 6
    assert table[3].split()[:3] == ["reflect", "+0.5", "3.00"]
    assert table[3].endswith("over-thinking")
    lines = own_category_lines(found, {"self-reflection": "reflect", "deductive": "deduce", "other": "x"})
    assert len(lines) == 3
    assert "+0.5: +2.00 [+2.00, +2.00]" in lines[1]
    assert "+0.5: +0.00 [+0.00, +0.00]" in lines[2]
