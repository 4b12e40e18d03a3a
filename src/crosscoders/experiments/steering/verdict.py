"""What a steering sweep says about over-thinking and incisive thinking, in sentences and a table."""

from collections.abc import Mapping, Sequence

from crosscoders._typing import typed
from crosscoders.interventions.sweeps.regimes import Regime
from crosscoders.interventions.sweeps.result import SteeredAnswers, SweepResult
from crosscoders.report.tables import aligned


@typed
def steering_verdict(
    sweep: SweepResult, *, reflection: str | None, deductive: str | None, base: SweepResult | None
) -> str:
    """Whether the paper's two effects show, and whether controls of the same size do the same.

    Args:
        sweep: The distilled model's.
        reflection: Name of the self-reflection direction; None if there is none.
        deductive: Name of the deductive direction; None if there is none.
        base: The base model's, if it was steered too.
    """
    effects = (
        f"Over-thinking shows with {_reached(sweep, 'over-thinking', reflection, sign=1)}; incisive thinking "
        f"with {_reached(sweep, 'incisive', deductive, sign=1)} and with "
        f"{_reached(sweep, 'incisive', reflection, sign=-1)}."
    )
    controls = [name for name in sweep.directions if name not in (reflection, deductive)]
    n = len(controls) * sum(strength != 0 for strength in sweep.strengths)
    over_thinking, incisive = (_settings(sweep, regime, controls) for regime in ("over-thinking", "incisive"))
    others = (
        f"Of {n} control settings {_counted(over_thinking, 'over-think')} and "
        f"{_counted(incisive, 'are incisive')}; answers collapse with "
        f"{', '.join(_settings(sweep, 'collapse', list(sweep.directions))) or 'no setting'}"
    )
    return f"{effects} {others}{_in_base(base, reflection)}."


def _reached(sweep: SweepResult, regime: Regime, direction: str | None, *, sign: int) -> str:
    """A direction and the strengths of one sign at which it gives a regime, and where it beats chance."""
    if direction is None:
        return "nothing (no latent for it)"
    tried = [answers for answers in sweep.steered if answers.direction == direction]
    tried = [answers for answers in tried if answers.strength * sign > 0]
    found = [answers for answers in tried if sweep.regime(answers) == regime]
    side = f"{direction} {'above' if sign > 0 else 'below'} 0"
    if not found:
        return f"{side} at none of {len(tried)} strengths"
    said = f"{side} at {_strengths(found)}"
    if "random" not in sweep.directions.values():
        return said
    beyond = [
        answers for answers in found if _is_beyond_random(sweep, answers, more=regime == "over-thinking")
    ]
    where = (
        f"beyond every random direction at {_strengths(beyond)}"
        if beyond
        else "no more than random directions"
    )
    return f"{said} ({where})"


def _strengths(found: Sequence[SteeredAnswers]) -> str:
    return ", ".join(f"{answers.strength:+g}" for answers in found)


def _is_beyond_random(sweep: SweepResult, answers: SteeredAnswers, *, more: bool) -> bool:
    """Whether acts of reflection change more than with any random direction as strong, of either sign."""
    measure = f"count/{sweep.bounds.reflection}"
    others = [
        sweep.difference(other, measure).mean
        for other in sweep.steered
        if other.kind == "random" and abs(other.strength) == abs(answers.strength)
    ]
    change = sweep.difference(answers, measure).mean
    return change > max(others) if more else change < min(others)


def _settings(sweep: SweepResult, regime: Regime, directions: Sequence[str]) -> list[str]:
    """Directions and strengths that give a regime."""
    return [
        f"{answers.direction} at {answers.strength:+g}"
        for answers in sweep.steered
        if answers.direction in directions and sweep.regime(answers) == regime
    ]


def _counted(settings: Sequence[str], what: str) -> str:
    return f"{len(settings)} {what}" + (f" ({', '.join(settings)})" if settings else "")


def _in_base(base: SweepResult | None, reflection: str | None) -> str:
    if base is None or reflection not in base.directions:
        return ""
    measure = f"count/{base.bounds.reflection}"
    tried = [answers for answers in base.steered if answers.direction == reflection]
    found = [f"{a.strength:+g}" for a in tried if base.difference(a, measure).is_above_zero]
    said = f"at {', '.join(found)}" if found else "at no strength"
    return f"; in the base model {reflection} adds {base.bounds.reflection} {said}"


@typed
def own_category_lines(sweep: SweepResult, names: Mapping[str, str]) -> list[str]:
    """Whether each category's latent brings about acts of its own category: change per answer by strength.

    Args:
        sweep: A sweep.
        names: Name of the direction of each category.
    """
    lines = []
    for category, direction in names.items():
        if f"count/{category}" not in sweep.measures:
            continue
        changes = []
        for answers in sweep.steered:
            if answers.direction == direction:
                change = sweep.difference(answers, f"count/{category}")
                changes.append(
                    f"{answers.strength:+g}: {change.mean:+.2f} [{change.low:+.2f}, {change.high:+.2f}]"
                )
        lines.append(f"  {direction}  {'  '.join(changes)}")
    return ["Acts of its own category that each latent adds per answer:", *lines] if lines else []


@typed
def steering_table(sweep: SweepResult) -> list[str]:
    """Lines of text, one per direction and strength.

    Args:
        sweep: A sweep.
    """
    shown = {
        "reflections": f"count/{sweep.bounds.reflection}",
        "accuracy": "accuracy",
        "tokens": "tokens",
        "coherence": "coherence",
        "collapsed": "collapsed",
    }
    columns = {title: measure for title, measure in shown.items() if measure in sweep.measures}
    rows = [["direction", "strength", *columns, "regime"]]
    for answers in (sweep.unsteered, *sweep.steered):
        cells = [_cell(sweep, answers, measure) for measure in columns.values()]
        regime = "" if answers is sweep.unsteered else sweep.regime(answers)
        rows.append([answers.direction, f"{answers.strength:+g}", *cells, regime])
    return aligned(rows)


def _cell(sweep: SweepResult, answers: SteeredAnswers, measure: str) -> str:
    found = sweep.mean(answers, measure)
    return f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"
