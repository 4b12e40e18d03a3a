"""What the steering experiment says of a sweep: it follows the figures, either way."""

import dataclasses

import pytest
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
KINDS = {"reflect": "latent", "deduce": "latent", "random 1": "random"}


def answers(
    direction: str, kind: str, strength: float, *, regime: str = "unchanged", n: int = N
) -> SteeredAnswers:
    reflections, tokens, accuracy, collapsed = SHIFTS[regime]
    values: dict[str, Tensor] = {
        "count/self-reflection": torch.full((n,), 1.0 + reflections),
        "count/deductive": torch.full((n,), 3.0),
        "tokens": 40 + tokens + torch.arange(n) % 3,
        "accuracy": torch.full((n,), 0.9 + accuracy),
        "coherence": torch.full((n,), -1.0),
        "collapsed": torch.full((n,), collapsed),
    }
    values = {name: value.double() for name, value in values.items()}
    return SteeredAnswers(
        direction=direction, kind=kind, strength=strength, values=values, answers=(), texts=()
    )


def sweep_of(
    regimes: dict[tuple[str, float], str], *, kinds: dict[str, str] = KINDS, n: int = N
) -> SweepResult:
    """Some directions at -0.5 and 0.5, "unchanged" unless said otherwise."""
    steered = [
        answers(name, kind, strength, regime=regimes.get((name, strength), "unchanged"), n=n)
        for name, kind in kinds.items()
        for strength in (-0.5, 0.5)
    ]
    return SweepResult(
        unsteered=answers(UNSTEERED, UNSTEERED, 0.0, n=n),
        steered=tuple(steered),
        strengths=(-0.5, 0.0, 0.5),
        bounds=RegimeBounds(),
        n_bootstrap=50,
        confidence=0.95,
        seed=0,
    )


def replaced(found: SweepResult, direction: str, strength: float, values: dict[str, Tensor]) -> SweepResult:
    """The sweep with other values of one setting."""
    steered = [
        dataclasses.replace(a, values={**a.values, **values})
        if (a.direction, a.strength) == (direction, strength)
        else a
        for a in found.steered
    ]
    return dataclasses.replace(found, steered=tuple(steered))


def without(found: SweepResult, measure: str) -> SweepResult:
    """The sweep as if a measure had not been taken."""

    def drop(a: SteeredAnswers) -> SteeredAnswers:
        return dataclasses.replace(a, values={k: v for k, v in a.values.items() if k != measure})

    return dataclasses.replace(
        found, unsteered=drop(found.unsteered), steered=tuple(map(drop, found.steered))
    )


def verdict_of(found: SweepResult, *, deductive: str | None = "deduce", base: SweepResult | None = None):
    return steering_verdict(found, reflection="reflect", deductive=deductive, base=base)


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
    assert verdict_of(found, base=base) == (
        "Over-thinking shows with reflect above 0: at +0.5 (accuracy -0.20, collapsed 0.00; beyond all 2 "
        "random settings). Incisive thinking shows with deduce above 0: at +0.5 (accuracy +0.00, collapsed "
        "0.00; beyond all 2 random settings). Incisive thinking shows with reflect below 0: at -0.5 "
        "(accuracy +0.00, collapsed 0.00; beyond all 2 random settings). Random settings are those of 1 "
        "random direction at the same strength, either sign; comparing with 2 of them resolves 1 in 3. Of 2 "
        "control settings 0 over-think and 0 are incisive. Answers collapse with deduce at -0.5 (accuracy "
        "-0.50, collapsed 1.00). In the base model reflect above 0 adds self-reflection: at +0.5 (accuracy "
        "-0.20, collapsed 0.00; beyond all 2 random settings)."
    )


@pytest.mark.parametrize("rival", [-0.5, 0.5])
def test_an_effect_that_random_directions_have_too_is_no_effect(rival: float) -> None:
    found = sweep_of({("random 1", rival): "incisive", ("deduce", 0.5): "incisive"})
    verdict = verdict_of(found)
    assert (
        "Incisive thinking does not show with deduce above 0: incisive answers at +0.5 (accuracy +0.00, "
        f"collapsed 0.00; not told apart from 1 of 2 random settings: random 1 at {rival:+g})."
    ) in verdict
    assert f"1 are incisive (random 1 at {rival:+g} (accuracy +0.00, collapsed 0.00))" in verdict


def test_beyond_random_needs_intervals_apart_in_reflections_and_in_length() -> None:
    found = sweep_of({("deduce", 0.5): "incisive"})
    few = (torch.arange(N) % 40 == 0).double()  # reflections 0.025 more: its interval reaches 0
    hardly = {"count/self-reflection": few, "tokens": torch.full((N,), 50.0).double()}
    close = replaced(found, "random 1", 0.5, hardly)
    assert "not told apart from 1 of 2 random settings: random 1 at +0.5" in verdict_of(close)
    shorter = replaced(found, "random 1", 0.5, {"tokens": torch.full((N,), 5.0).double()})
    assert "not told apart from 1 of 2 random settings: random 1 at +0.5" in verdict_of(shorter)
    paired = replaced(found, "random 1", 0.5, {"tokens": 31 + torch.arange(N).double() % 3})
    assert "+0.5 (accuracy +0.00, collapsed 0.00; beyond all 2 random settings)" in verdict_of(paired)


def test_what_cannot_be_told_is_not_called_absent() -> None:
    effects = {("deduce", 0.5): "incisive", ("reflect", 0.5): "over-thinking"}
    cannot = "Incisive thinking cannot be told with deduce above 0 ({})."
    assert cannot.format("no grader") in verdict_of(without(sweep_of(effects), "accuracy"))
    few = verdict_of(sweep_of(effects, n=50))
    assert cannot.format("50 graded prompts, at least 60 needed") in few
    assert "Over-thinking shows with reflect" in few
    assert "whether any is incisive cannot be told" in few
    tiny = verdict_of(sweep_of(effects, n=9), base=sweep_of(effects, n=9))
    assert "Over-thinking cannot be told with reflect above 0 (9 prompts, at least 10 needed)." in tiny
    assert "In the base model self-reflection cannot be told with reflect above 0 (9 prompts" in tiny
    poor = sweep_of(effects)
    poor = dataclasses.replace(
        poor,
        unsteered=dataclasses.replace(
            poor.unsteered, values={**poor.unsteered.values, "accuracy": torch.full((N,), 0.02).double()}
        ),
    )
    assert cannot.format("unsteered accuracy 0.02") in verdict_of(poor)
    no_sign = sweep_of(effects)
    no_sign = dataclasses.replace(
        no_sign, strengths=(0.0, 0.5), steered=tuple(a for a in no_sign.steered if a.strength > 0)
    )
    assert "Incisive thinking cannot be told with reflect below 0 (no strength tried)." in verdict_of(no_sign)


def test_absence_is_said_too() -> None:
    assert verdict_of(sweep_of({}), deductive=None, base=sweep_of({})) == (
        "Over-thinking does not show with reflect above 0: at none of 1 strengths. Incisive thinking cannot "
        "be told with a deductive latent (none tested). Incisive thinking does not show with reflect below "
        "0: at none of 1 strengths. Random settings are those of 1 random direction at the same strength, "
        "either sign; comparing with 2 of them resolves 1 in 3. Of 2 control settings 0 over-think and 0 are "
        "incisive. Answers collapse with no setting. In the base model reflect above 0 does not add "
        "self-reflection: at none of 1 strengths."
    )


def test_controls_are_chosen_by_their_kind() -> None:
    kinds = {"reflect": "latent", "other": "wrong_category", "own": "other", "second": "latent"}
    regimes = {(name, 0.5): "over-thinking" for name in kinds}
    verdict = verdict_of(sweep_of(regimes, kinds=kinds | {"random 1": "random"}), deductive=None)
    assert "Of 4 control settings 1 over-think (other at +0.5 (" in verdict
    assert "own at" not in verdict
    alone = verdict_of(sweep_of(regimes, kinds={"reflect": "latent"}), deductive=None)
    assert "shows with reflect above 0: at +0.5 (accuracy -0.20, collapsed 0.00; no random settings" in alone
    assert "No controls were steered." in alone


def test_the_base_model_counts_only_strengths_above_0_that_neither_collapse_nor_look_random() -> None:
    plain, added = sweep_of({}), "In the base model reflect above 0 does not add self-reflection: "
    below = sweep_of({("reflect", -0.5): "over-thinking"})
    assert added + "at none of 1 strengths." in verdict_of(plain, base=below)
    collapse = sweep_of({("reflect", 0.5): "collapse"})
    assert added + "at none of 1 strengths." in verdict_of(plain, base=collapse)
    random = sweep_of({("reflect", 0.5): "over-thinking", ("random 1", -0.5): "over-thinking"})
    assert added + "at +0.5 (accuracy -0.20, collapsed 0.00; not told apart from 1 of 2" in verdict_of(
        plain, base=random
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
