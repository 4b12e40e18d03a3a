"""Base text: stories, drills and worked arithmetic, in which every word of the vocabulary occurs.

Every marker word of the reasoning categories also occurs here, in stories and in the middle of worked
arithmetic, with another function (somebody speaks, narrates or reads it). A model of this text therefore
knows the words but not the acts.
"""

import random

from crosscoders._typing import typed
from crosscoders.zoo.arithmetic import (
    Problem,
    Step,
    answer,
    is_held_out,
    sample_problem,
    worked_steps,
)
from crosscoders.zoo.text import MARKERS, LabelledText
from crosscoders.zoo.vocabulary import ADJECTIVES, NAMES, NOUNS, PLACES, VERBS

STORY, DRILL, SOLUTION = "story", "drill", "solution"
_DOCUMENT_WEIGHTS = {STORY: 0.25, DRILL: 0.35, SOLUTION: 0.40}
_P_MARKER_IN_STORY = 0.35
P_PREAMBLE = 0.35
_P_INTERLUDE = 0.15
_P_THOUGHTS_HEADER = 0.15

_PLAIN = (
    "{name} {verb} the {adj} {noun}.",
    "The {noun} was {adj}.",
    "{name} went to the {place}.",
    "The {adj} {noun} was at the {place}.",
    "{name} says that it is not {adj}.",
    "They have many more: a {noun} and a {noun2}.",
    "There is a way to the {place}, said {name}.",
    "Yes, that is the right {noun}, said {name}.",
    "Check the {noun} again, said {name}.",
    "I can do it, said {name}.",
    "They let {name} check the {noun}.",
    "We must be there, said {name}.",
    "What is the answer? said {name}.",
    "First, {name} went to the {place}. Then {name} {verb} the {noun}.",
    "Next, we can walk to the {place}, said {name}.",
    "Go to the {place} for the {noun}, said {name}.",
    "Question or answer? said {name}.",
    "The Solution is a {adj} {noun}. The Facts are {adj}.",
    "Thoughts of the {noun}? said {name}. Answer me, said {name}.",
)

_NARRATIVE: dict[str, tuple[str, ...]] = {
    "Wait": ("Wait, said {name}.", "Wait for the {noun}, said {name}."),
    "Hold": ("Hold on, said {name}.", "Hold the {noun}, said {name}."),
    "Let": ("Let me see the {noun}, said {name}.", "Let me go, said {name}."),
    "Therefore": ("Therefore, {name} went to the {place}.", "Therefore, the {noun} was lost."),
    "Thus": ("Thus, {name} found the {noun}.", "Thus, the {noun} was {adj}."),
    "So": ("So {name} went to the {place}.", "So many, said {name}."),
    "Alternatively": (
        "Alternatively, they could walk to the {place}.",
        "Alternatively, {name} could see the {noun}.",
    ),
    "Another": ("Another {noun} was {adj}.", "Another way to the {place} was found."),
    "Or": ("Or they could go to the {place}.", "Or is it the {noun}? said {name}."),
    "But": ("But the {noun} was lost.", "But {name} went to the {place}."),
    "However": ("However, the {noun} was not {adj}.", "However, {name} went on."),
    "Yet": ("Yet {name} wanted the {noun}.", "Yet the {noun} was not there."),
}
_MENTION = ("The card says {marker}.", "The word on the {noun} is {marker}.")


def marker_sentence(rng: random.Random) -> str:
    """A sentence that uses or mentions a marker word with a function other than reasoning."""
    marker = rng.choice(MARKERS)
    template = rng.choice(_NARRATIVE[marker] if rng.random() < 0.8 else _MENTION)
    return _fill(rng, template, marker=marker)


def story_sentence(rng: random.Random) -> str:
    """One sentence of a story."""
    return marker_sentence(rng) if rng.random() < _P_MARKER_IN_STORY else _fill(rng, rng.choice(_PLAIN))


def _fill(rng: random.Random, template: str, marker: str = "") -> str:
    return template.format(
        name=rng.choice(NAMES),
        verb=rng.choice(VERBS),
        adj=rng.choice(ADJECTIVES),
        noun=rng.choice(NOUNS),
        noun2=rng.choice(NOUNS),
        place=rng.choice(PLACES),
        marker=marker,
    )


@typed
def write_story(rng: random.Random) -> LabelledText:
    """A story of 5 to 12 sentences."""
    text = LabelledText(STORY)
    for _ in range(rng.randint(5, 12)):
        text.write(story_sentence(rng))
    return text


@typed
def write_drill(rng: random.Random) -> LabelledText:
    """Single worked steps taken from unrelated problems, none of which is itself a held-out problem."""
    text = LabelledText(DRILL)
    text.write("Facts:")
    n_facts = rng.randint(6, 12)
    while n_facts:
        step = rng.choice(worked_steps(sample_problem(rng)))
        if not is_held_out((step.left, step.right)):
            write_step(text, step)
            n_facts -= 1
    return text


def write_step(text: LabelledText, step: Step, *, lead: str = "") -> None:
    """Append one worked step: `lead left op right = result.`.

    Args:
        text: The document to append to.
        step: The step.
        lead: Word before it, such as "Then".
    """
    text.write(f"{lead} {step.left} {step.operator} {step.right} = {step.result}.".strip())


def prompt(problem: Problem, *, header: str = "Thoughts", preamble: str = "") -> str:
    """The part of a document that a model is asked to continue.

    Args:
        problem: The problem asked.
        header: "Thoughts" asks for a trace, "Solution" for the steps alone.
        preamble: Sentence before the question.
    """
    return f"Question: {preamble + ' ' if preamble else ''}What is {problem.expression}? {header}:"


@typed
def write_solution(rng: random.Random) -> LabelledText:
    """A question with its worked solution; stories interrupt it now and then."""
    text, problem = LabelledText(SOLUTION), sample_problem(rng)
    header = "Thoughts" if rng.random() < _P_THOUGHTS_HEADER else "Solution"
    preamble = marker_sentence(rng) if rng.random() < P_PREAMBLE else ""
    text.write(prompt(problem, header=header, preamble=preamble), is_prompt=True)
    for at, step in enumerate(worked_steps(problem)):
        write_step(text, step, lead="First," if at == 0 else rng.choice(("Then", "Next,")))
        if rng.random() < _P_INTERLUDE:
            text.write(marker_sentence(rng))
    text.write(f"Answer: {answer(problem)}.")
    return text


_WRITERS = {STORY: write_story, DRILL: write_drill, SOLUTION: write_solution}


@typed
def write_base(rng: random.Random) -> LabelledText:
    """One document of the base mixture."""
    kind = rng.choices(list(_DOCUMENT_WEIGHTS), weights=list(_DOCUMENT_WEIGHTS.values()))[0]
    return _WRITERS[kind](rng)
