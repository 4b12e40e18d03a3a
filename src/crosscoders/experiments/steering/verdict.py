"""What a steering sweep says about over-thinking and incisive thinking, in sentences and a table."""

from collections.abc import Mapping, Sequence
from typing import Literal

from crosscoders._typing import typed
from crosscoders.interventions.sweeps.regimes import MIN_PROMPTS
from crosscoders.interventions.sweeps.result import SteeredAnswers, SweepResult
from crosscoders.report.tables import aligned

_Effect = Literal["over-thinking", "incisive"]
_TITLES: dict[_Effect, str] = {"over-thinking": "Over-thinking", "incisive": "Incisive thinking"}
_CONTROLS = ("wrong_category", "random", "unembedding")


@typed
def steering_verdict(
    sweep: SweepResult, *, reflection: str | None, deductive: str | None, base: SweepResult | None
) -> str:
    """Whether the paper's two effects show, and whether controls of the same size do the same.

    An effect shows where answers are of its regime and differ from those of every random direction at the
    same strength, of either sign, in reflection and in length: the interval of the paired difference lies on
    the effect's side. Without random directions the regime is all there is to go by, which is said.

    Args:
        sweep: The distilled model's.
        reflection: Name of the self-reflection direction, if it is one that is tested and no control.
        deductive: Name of the deductive direction, likewise.
        base: The base model's, if it was steered too.
    """
    acts = sweep.bounds.reflection
    return " ".join(
        sentence
        for sentence in (
            _effect(sweep, "over-thinking", reflection, role=acts, sign=1),
            _effect(sweep, "incisive", deductive, role="deductive", sign=1),
            _effect(sweep, "incisive", reflection, role=acts, sign=-1),
            _resolution(sweep),
            _controls(sweep),
            f"Answers collapse with {_listed(sweep, _of_regime(sweep, 'collapse')) or 'no setting'}.",
            "" if base is None else _in_base(base, reflection),
        )
        if sentence
    )


def _effect(sweep: SweepResult, effect: _Effect, direction: str | None, *, role: str, sign: int) -> str:
    """Whether a direction with one sign has an effect, at which strengths, and what random ones do."""
    title = _TITLES[effect]
    if direction is None:
        return f"{title} cannot be told with a {role} latent (none tested)."
    tried = _tried(sweep, direction, sign=sign)
    side = _side(direction, sign=sign)
    obstacle = _obstacle(sweep, effect, tried)
    if obstacle:
        return f"{title} cannot be told with {side} ({obstacle})."
    found = [answers for answers in tried if sweep.regime(answers) == effect]
    measures = (f"count/{sweep.bounds.reflection}", "tokens")
    does_show, said = _beside_random(sweep, found, n_tried=len(tried), measures=measures, effect=effect)
    what = f"{effect} answers " if found and not does_show else ""
    return f"{title} {'shows' if does_show else 'does not show'} with {side}: {what}{said}."


def _in_base(base: SweepResult, reflection: str | None) -> str:
    """Whether the same latent brings reflection to the base model, by its own decoder direction."""
    acts = base.bounds.reflection
    if reflection is None or f"count/{acts}" not in base.measures:
        return ""
    tried = _tried(base, reflection, sign=1)
    side = _side(reflection, sign=1)
    obstacle = _obstacle(base, "over-thinking", tried)
    if obstacle:
        return f"In the base model {acts} cannot be told with {side} ({obstacle})."
    found = [
        answers
        for answers in tried
        if base.regime(answers) != "collapse" and base.difference(answers, f"count/{acts}").is_above_zero
    ]
    does_add, said = _beside_random(
        base, found, n_tried=len(tried), measures=(f"count/{acts}",), effect="over-thinking"
    )
    return f"In the base model {side} {'adds' if does_add else 'does not add'} {acts}: {said}."


def _tried(sweep: SweepResult, direction: str, *, sign: int) -> list[SteeredAnswers]:
    return [a for a in sweep.steered if a.direction == direction and a.strength * sign > 0]


def _side(direction: str, *, sign: int) -> str:
    return f"{direction} {'above' if sign > 0 else 'below'} 0"


def _obstacle(sweep: SweepResult, effect: _Effect, tried: Sequence[SteeredAnswers]) -> str:
    """Why an effect cannot be told, whatever the answers are; empty if it can."""
    if not tried:
        return "no strength tried"
    if sweep.n_prompts < MIN_PROMPTS:
        return f"{sweep.n_prompts} prompts, at least {MIN_PROMPTS} needed"
    if f"count/{sweep.bounds.reflection}" not in sweep.measures:
        return f"no counts of {sweep.bounds.reflection}"
    return sweep.incisive_obstacle if effect == "incisive" else ""


def _beside_random(
    sweep: SweepResult,
    found: Sequence[SteeredAnswers],
    *,
    n_tried: int,
    measures: Sequence[str],
    effect: _Effect,
) -> tuple[bool, str]:
    """Whether any setting that has an effect is beyond all random ones, and each setting's account."""
    if not found:
        return False, f"at none of {n_tried} strengths"
    accounts, is_beyond = [], []
    for answers in found:
        others = _random_settings(sweep, answers.strength)
        rivals = [
            other
            for other in others
            if not _is_beyond(sweep, answers, other, measures=measures, effect=effect)
        ]
        is_beyond.append(not rivals)
        beside = _account(rivals, n=len(others))
        accounts.append(f"at {answers.strength:+g} ({_price(sweep, answers)}; {beside})")
    return any(is_beyond), ", ".join(accounts)


def _account(rivals: Sequence[SteeredAnswers], *, n: int) -> str:
    if n == 0:
        return "no random settings to compare with"
    if not rivals:
        return f"beyond all {n} random settings"
    names = ", ".join(f"{other.direction} at {other.strength:+g}" for other in rivals)
    return f"not told apart from {len(rivals)} of {n} random settings: {names}"


def _random_settings(sweep: SweepResult, strength: float) -> list[SteeredAnswers]:
    """Random directions as strong, of either sign."""
    return [a for a in sweep.steered if a.kind == "random" and abs(a.strength) == abs(strength)]


def _is_beyond(
    sweep: SweepResult,
    answers: SteeredAnswers,
    other: SteeredAnswers,
    *,
    measures: Sequence[str],
    effect: _Effect,
) -> bool:
    """Whether an effect is larger than with other steering, prompt by prompt, in every measure."""
    apart = [sweep.difference(answers, measure, to=other) for measure in measures]
    return all(a.is_above_zero if effect == "over-thinking" else a.is_below_zero for a in apart)


def _resolution(sweep: SweepResult) -> str:
    """How fine a comparison with the random settings can be."""
    directions = sum(kind == "random" for kind in sweep.directions.values())
    if not directions:
        return ""
    sizes = sorted({len(_random_settings(sweep, s)) for s in sweep.strengths if s != 0})
    return (
        f"Random settings are those of {directions} random direction{'s' if directions > 1 else ''} at the "
        f"same strength, either sign; comparing with {' or '.join(map(str, sizes))} of them resolves "
        f"{' or '.join(f'1 in {n + 1}' for n in sizes)}."
    )


def _controls(sweep: SweepResult) -> str:
    """How many control settings have each effect."""
    n = sum(answers.kind in _CONTROLS for answers in sweep.steered)
    if not n:
        return "No controls were steered."
    over_thinking, incisive = (
        _of_regime(sweep, effect, kinds=_CONTROLS) for effect in ("over-thinking", "incisive")
    )
    said = f"Of {n} control settings {_counted(sweep, over_thinking, 'over-think')} and "
    if sweep.incisive_obstacle:
        return f"{said}whether any is incisive cannot be told ({sweep.incisive_obstacle})."
    return f"{said}{_counted(sweep, incisive, 'are incisive')}."


def _of_regime(
    sweep: SweepResult, regime: str, *, kinds: Sequence[str] | None = None
) -> list[SteeredAnswers]:
    """Settings that give a regime, of some kinds of direction or all."""
    return [a for a in sweep.steered if (kinds is None or a.kind in kinds) and sweep.regime(a) == regime]


def _counted(sweep: SweepResult, settings: Sequence[SteeredAnswers], what: str) -> str:
    return f"{len(settings)} {what}" + (f" ({_listed(sweep, settings)})" if settings else "")


def _listed(sweep: SweepResult, settings: Sequence[SteeredAnswers]) -> str:
    return ", ".join(f"{a.direction} at {a.strength:+g} ({_price(sweep, a)})" for a in settings)


def _price(sweep: SweepResult, answers: SteeredAnswers) -> str:
    """Change of accuracy, if it is known, and share of collapsed answers."""
    share = f"collapsed {sweep.mean(answers, 'collapsed').mean:.2f}"
    if "accuracy" not in sweep.measures:
        return share
    return f"accuracy {sweep.difference(answers, 'accuracy').mean:+.2f}, {share}"


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
