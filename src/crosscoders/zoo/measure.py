"""What tiny-reasoner's checkpoints do: accuracy, reflections, and whether planted slips are mended."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from crosscoders._typing import typed
from crosscoders.models import LanguageModel, generate
from crosscoders.zoo.arithmetic import Problem, answer, sample_problem, slip_value
from crosscoders.zoo.base_text import prompt
from crosscoders.zoo.parser import acts, final_answer, reflections, to_text
from crosscoders.zoo.vocabulary import END_OF_TEXT, encode, token_ids

MAX_NEW_TOKENS = 240


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """Averages over the answers to a set of problems.

    Args:
        n_answers: Answers averaged over.
        accuracy: Share of answers with the right value.
        reflections_per_answer: Mean count of well-formed reflections.
        tokens_per_answer: Mean length in tokens, the prompt left out.
        finished: Share of answers that reach an end.
    """

    n_answers: int
    accuracy: float
    reflections_per_answer: float
    tokens_per_answer: float
    finished: float

    def to_dict(self) -> dict[str, float]:
        """As plain numbers."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class SlipResponse:
    """What follows a step of the model's own trace, with a slip planted into it and without.

    Args:
        n_planted: Slips planted.
        reflects_after_slip: Share of continuations after a slip whose first sentence reflects.
        reflects_otherwise: The same without the slip.
        right_in_the_end: Share of continuations after a slip that end in the right answer.
    """

    n_planted: int
    reflects_after_slip: float
    reflects_otherwise: float
    right_in_the_end: float


@typed
def held_out_problems(n: int, *, seed: int) -> list[Problem]:
    """Problems whose multiset of operands no training text contained, all different.

    Args:
        n: How many.
        seed: Seed of the draw.

    Returns:
        Problems in the order drawn.
    """
    rng, chosen = random.Random(f"held-out/{seed}"), {}
    while len(chosen) < n:
        problem = sample_problem(rng, held_out=True)
        chosen[problem] = None
    return list(chosen)


@typed
def answer_problems(
    model: LanguageModel,
    problems: Sequence[Problem],
    *,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[list[int]]:
    """The model's answer to each problem, as token ids without the prompt.

    Args:
        model: A checkpoint of the family.
        problems: Problems to ask.
        temperature: 0 for greedy decoding.
        generator: Needed for sampling.
        max_new_tokens: Length limit.

    Returns:
        One list of ids per problem, in order.
    """
    prompts = [list(encode(prompt(problem))) for problem in problems]
    return continue_texts(
        model, prompts, temperature=temperature, generator=generator, max_new_tokens=max_new_tokens
    )


@typed
def continue_texts(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[list[int]]:
    """Continuations up to the end of text.

    Args:
        model: A checkpoint of the family.
        prompts: Token ids to continue.
        temperature: 0 for greedy decoding.
        generator: Needed for sampling.
        max_new_tokens: Length limit.

    Returns:
        Ids of each continuation, without the prompt.
    """
    return generate(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        generator=generator,
        stop_ids=(token_ids()[END_OF_TEXT],),
    )


@typed
def behaviour(problems: Sequence[Problem], answers: Sequence[Sequence[int]]) -> Behaviour:
    """Summarize answers.

    Args:
        problems: The problems asked.
        answers: Token ids of each answer.

    Returns:
        The averages.

    Raises:
        ValueError: No problems, or another number of answers.
    """
    if not problems or len(problems) != len(answers):
        raise ValueError(
            f"behaviour: got {len(problems)} problems and {len(answers)} answers; "
            "expected as many of both, at least 1."
        )
    n, end = len(problems), token_ids()[END_OF_TEXT]
    right = sum(final_answer(ids) == answer(problem) for problem, ids in zip(problems, answers, strict=True))
    return Behaviour(
        n_answers=n,
        accuracy=right / n,
        reflections_per_answer=sum(reflections(ids) for ids in answers) / n,
        tokens_per_answer=sum(len(ids) for ids in answers) / n,
        finished=sum(end in ids or final_answer(ids) is not None for ids in answers) / n,
    )


@typed
def slip_response(
    model: LanguageModel,
    problems: Sequence[Problem],
    *,
    seed: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> SlipResponse:
    """Plant one slip into the model's own greedy trace of each problem and let it go on from there.

    Args:
        model: A checkpoint of the family.
        problems: Problems to ask; those whose greedy trace has no right step are left out.
        seed: Chooses the step and the wrong value.
        temperature: Of the continuation; the trace that the slip is planted into is always greedy.
        generator: Needed for sampling.

    Returns:
        Shares of continuations whose first sentence reflects, after the slip and, with the same text up to
        there, without it; and of slipped traces that are right in the end.

    Raises:
        ValueError: No trace has a right step.
    """
    rng = random.Random(f"slips/{seed}")
    slipped, untouched, asked = [], [], []
    for problem, ids in zip(problems, answer_problems(model, problems), strict=True):
        text = to_text([*encode(prompt(problem)), *ids])
        steps = [act for act in acts(text) if act.category is None and act.step is not None and act.is_right]
        if not steps:
            continue
        act = rng.choice(steps)
        assert act.step is not None
        slip = slip_value(rng, act.step)
        if slip == act.step.result:  # 0 + 0 leaves no room for a slip
            continue
        untouched.append(list(encode(text[: act.end])))
        slipped.append(list(encode(text[: act.result_at] + f"{slip}.")))
        asked.append(problem)
    if not asked:
        raise ValueError(
            f"slip_response: none of {len(problems)} greedy traces has a right step to plant a slip into; "
            "pass more problems or a model that reasons."
        )
    kwargs = {"temperature": temperature, "generator": generator}
    after_slip, otherwise = (
        continue_texts(model, slipped, **kwargs),
        continue_texts(model, untouched, **kwargs),
    )
    n = len(asked)
    return SlipResponse(
        n_planted=n,
        reflects_after_slip=sum(map(_reflects_first, after_slip)) / n,
        reflects_otherwise=sum(map(_reflects_first, otherwise)) / n,
        right_in_the_end=sum(final_answer(ids) == answer(p) for p, ids in zip(asked, after_slip, strict=True))
        / n,
    )


def _reflects_first(ids: Sequence[int]) -> bool:
    found = acts(to_text(ids))
    return bool(found) and found[0].category == "self-reflection" and found[0].start <= 1
