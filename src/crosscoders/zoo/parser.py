"""Read tiny-reasoner's language back: label the acts in any text, the models' own samples included.

The parser sees tokens alone. It recognizes each clause by its words and works out for itself whether a step
is right, so its labels agree with the generator's on generated text and extend to text that no generator
wrote.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from crosscoders._typing import typed
from crosscoders.reasoning import CATEGORIES
from crosscoders.zoo.arithmetic import Step, apply, other_way, reduce_once
from crosscoders.zoo.text import MARKERS, LabelledText
from crosscoders.zoo.vocabulary import vocabulary

_STEP = r"(?P<left>\d+) (?P<op>[+x-]) (?P<right>\d+) = (?P<result>\d+)\."
_OPENINGS: dict[str, str] = {
    "self-reflection": r"(?P<reflection>Wait, let me check that:|Hold on, is that right\?|"
    rf"Let me check again:) {_STEP}",
    "alternative": rf"(?P<switch>Alternatively,|Another way:|Or we can do) {_STEP}",
    "contrastive": r"(?P<contrast>But|However,|Yet) "
    rf"(?:that is not right: {_STEP}|I said \d+\.|there is more to do\.)",
    "deductive": r"(?P<conclusion>Therefore,|Thus,|So) "
    r"(?:the answer is \d+\.|it is \d+, not \d+\.|we have \d+(?: [+x-] \d+)*\.)",
    "step": rf"(?P<lead>First,|Then|Next,) {_STEP}",
}


_PARTS = ("left", "op", "right", "result")


def _unique_groups(name: str, pattern: str) -> str:
    """Regular expressions allow each group name once; keep the parts of a step apart by act."""
    kind = CATEGORIES.index(name) if name in CATEGORIES else "step"
    for part in _PARTS:
        pattern = pattern.replace(f"?P<{part}>", f"?P<{part}_{kind}>")
    return f"(?P<act_{kind}>{pattern})"


_ACT = re.compile("|".join(_unique_groups(name, pattern) for name, pattern in _OPENINGS.items()))
_PROBLEM = re.compile(r"What is (\d+(?: [+x-] \d+)+)\? (?:Thoughts|Solution):")
_ANSWER = re.compile(r"Answer: (\d+)\.")


@dataclass(frozen=True, slots=True)
class Act:
    """One recognized clause.

    Args:
        category: Its reasoning category; None for a plain step.
        start: Character offset of its first word.
        end: Character offset behind its last.
        words: Its text.
        step: The step that it states, if any.
        expected: The step that the problem asks for at this place, if a problem was found.
        result_at: Character offset of the stated result; -1 without a step.
    """

    category: str | None
    start: int
    end: int
    words: str
    step: Step | None = None
    expected: Step | None = None
    result_at: int = -1

    @property
    def is_right(self) -> bool:
        """Whether the stated step is the one that the problem asks for, or another way to it.

        Without a problem: whether it is arithmetically right. True for a clause without a step.
        """
        if self.step is None:
            return True
        if self.expected is None:
            return apply(self.step.operator, self.step.left, self.step.right) == self.step.result
        return self.step == self.expected or (
            self.category is not None and self.step == other_way(self.expected)
        )


@typed
def to_text(ids: Sequence[int]) -> str:
    """Text of token ids, with the leading space of the first word kept."""
    words = vocabulary()
    return "".join(words[index] for index in ids).replace("\u2581", " ")


@typed
def acts(text: str) -> list[Act]:
    """All recognized clauses of a text that asks at most one problem, in order."""
    asked = _PROBLEM.search(text)
    words = asked.group(1).split() if asked else []
    operands, operators = tuple(map(int, words[::2])), tuple(words[1::2])
    expected: Step | None = None
    found = []
    for match in _ACT.finditer(text):
        kind = str(match.lastgroup).removeprefix("act_")
        category = None if kind == "step" else CATEGORIES[int(kind)]
        if category is None:
            expected = None
            if operators:
                expected, operands, operators = reduce_once(operands, operators)
        act = Act(category, match.start(), match.end(), match.group())
        if f"result_{kind}" in match.groupdict() and match.group(f"result_{kind}") is not None:
            left, operator, right, result = (match.group(f"{part}_{kind}") for part in _PARTS)
            step = Step(int(left), operator, int(right), int(result))
            act = replace(act, step=step, expected=expected, result_at=match.start(f"result_{kind}"))
        found.append(act)
    return found


@typed
def parse(ids: Sequence[int], *, origin: str = "sample") -> LabelledText:
    """Label a token sequence. `p_category` stays zero: only the generator knows its own probabilities.

    Args:
        ids: Token ids of one document.
        origin: Kind of document to note.

    Returns:
        The document with its labels.
    """
    text = to_text(ids)
    ends = list(accumulate(len(vocabulary()[index]) for index in ids))
    labelled = LabelledText(origin)
    n = len(ids)
    labelled.ids = list(ids)
    labelled.function, labelled.form, labelled.onset = [-1] * n, [-1] * n, [-1] * n
    labelled.is_slip, labelled.slip_pending = [False] * n, [False] * n
    labelled.p_category = [(0.0,) * len(CATEGORIES)] * n
    asked = re.search(r"(?:Thoughts|Solution):", text)
    n_prompt = bisect_left(ends, asked.end()) + 1 if asked else 0
    labelled.is_prompt = [at < n_prompt for at in range(n)]
    _label_acts(labelled, acts(text), ends)
    return labelled


def _label_acts(labelled: LabelledText, found: list[Act], ends: list[int]) -> None:
    slip_from: int | None = None
    for act in found:
        first, last = bisect_right(ends, act.start), bisect_left(ends, act.end)
        if act.category is not None:
            category, form = CATEGORIES.index(act.category), MARKERS.index(re.split(r"[ ,]", act.words)[0])
            labelled.function[first : last + 1] = [category] * (last + 1 - first)
            labelled.form[first : last + 1] = [form] * (last + 1 - first)
            if first:
                labelled.onset[first - 1] = category
        if act.step is None:
            continue
        result = bisect_right(ends, act.result_at)
        if slip_from is not None and act.is_right and act.category is not None:
            _mark_pending(labelled, slip_from, result)
            slip_from = None
        elif slip_from is None and not act.is_right and act.category is None:
            slip_from = result
            labelled.is_slip[result:last] = [True] * (last - result)
    if slip_from is not None:
        _mark_pending(labelled, slip_from, len(labelled))


def _mark_pending(labelled: LabelledText, start: int, stop: int) -> None:
    labelled.slip_pending[start:stop] = [True] * (stop - start)


@typed
def reflections(ids: Sequence[int]) -> int:
    """Number of well-formed reflections: a marker, its check clause and a recomputed step.

    The same one repeated in a row counts once.
    """
    count, previous = 0, None
    for act in acts(to_text(ids)):
        if act.category == "self-reflection" and act.words != previous:
            count += 1
        previous = act.words
    return count


@typed
def stated_answer(text: str) -> int | None:
    """The last `Answer: N.` of a text, or None."""
    found = _ANSWER.findall(text)
    return int(found[-1]) if found else None


@typed
def final_answer(ids: Sequence[int]) -> int | None:
    """The last `Answer: N.` of a text given as token ids, or None."""
    return stated_answer(to_text(ids))
