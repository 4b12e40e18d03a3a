"""Reasoning traces: worked solutions with slips and reasoning acts, and the truth about each.

The trace is a small state machine. After every step a table (`ACTS`) gives the probability of each next act
(checks, switches, contrasts and deductions), from what is true there: whether a slip is pending, whether
steps remain, what the sentence just written was. Nothing depends on the previous token alone, and the surface
form of an act is drawn independently of the reason for it.
"""

import random

from crosscoders._typing import typed
from crosscoders.reasoning import CATEGORIES
from crosscoders.zoo.arithmetic import (
    Problem,
    Step,
    other_way,
    reduce_once,
    sample_problem,
    slip_value,
    write_expression,
)
from crosscoders.zoo.base_text import P_PREAMBLE, marker_sentence, prompt
from crosscoders.zoo.text import FORMS, MARKERS, LabelledText

TRACE = "trace"
P_SLIP = 0.3
ROUTINE_REFLECTION_RATE = 0.05
_P_CONFIRM = 0.4

REFLECT, DEDUCE, SWITCH, CONTRAST = CATEGORIES
CONTINUE, ANSWER = "continue", "answer"

# Probability of the next act, by (situation, whether steps remain).
ACTS: dict[tuple[str, bool], dict[str, float]] = {
    ("slip", True): {REFLECT: 0.92, SWITCH: 0.04, CONTRAST: 0.04},
    ("slip", False): {REFLECT: 0.92, SWITCH: 0.04, CONTRAST: 0.04},
    ("step", True): {
        REFLECT: ROUTINE_REFLECTION_RATE,
        SWITCH: 0.07,
        CONTRAST: 0.15,
        DEDUCE: 0.17,
        CONTINUE: 0.56,
    },
    ("step", False): {REFLECT: ROUTINE_REFLECTION_RATE, SWITCH: 0.38, DEDUCE: 0.45, ANSWER: 0.12},
    ("mismatch", True): {CONTRAST: 0.80, DEDUCE: 0.20},
    ("mismatch", False): {CONTRAST: 0.80, DEDUCE: 0.20},
    ("checked", True): {CONTRAST: 0.15, DEDUCE: 0.15, CONTINUE: 0.70},
    ("checked", False): {DEDUCE: 0.70, ANSWER: 0.30},
    ("corrected", True): {DEDUCE: 0.20, CONTINUE: 0.80},
    ("corrected", False): {DEDUCE: 0.70, ANSWER: 0.30},
    ("contrasted", True): {DEDUCE: 0.15, CONTINUE: 0.85},
    ("deduced", True): {CONTINUE: 1.0},
    ("deduced", False): {ANSWER: 1.0},
}

REFLECTIONS = {
    "Wait": "Wait, let me check that:",
    "Hold": "Hold on, is that right?",
    "Let": "Let me check again:",
}
SWITCHES = {"Alternatively": "Alternatively,", "Another": "Another way:", "Or": "Or we can do"}
CONCLUSIONS = {"Therefore": "Therefore,", "Thus": "Thus,", "So": "So"}
CONTRASTS = {"But": "But", "However": "However,", "Yet": "Yet"}
CONFIRMATION = "Yes, that is right."


@typed
def write_trace(rng: random.Random, *, problem: Problem | None = None) -> LabelledText:
    """One question with a reasoning trace that ends in the right answer.

    Args:
        rng: Source of every choice.
        problem: The problem asked; drawn from the training side if None.
    """
    return _TraceWriter(rng, problem or sample_problem(rng)).write()


class _TraceWriter:
    def __init__(self, rng: random.Random, problem: Problem) -> None:
        self.rng = rng
        self.text = LabelledText(TRACE)
        self.operands, self.operators = problem.operands, problem.operators
        preamble = marker_sentence(rng) if rng.random() < P_PREAMBLE else ""
        self.text.write(prompt(problem, preamble=preamble), is_prompt=True)

    def write(self) -> LabelledText:
        lead = "First,"
        while self.operators:
            self._work_step(lead)
            lead = self.rng.choice(("Then", "Next,"))
        self.text.write(f"Answer: {self.operands[0]}.")
        return self.text

    def _work_step(self, lead: str) -> None:
        step, self.operands, self.operators = reduce_once(self.operands, self.operators)
        said = slip_value(self.rng, step) if self.rng.random() < P_SLIP else step.result
        slipped = said != step.result
        self.text.write(f"{lead} {step.left} {step.operator} {step.right} =")
        self.text.write(str(said), is_slip=slipped, slip_pending=slipped)
        self.text.close_sentence(slip_pending=slipped)
        situation = "slip" if slipped else "step"
        while situation:
            situation = self._act(situation, step, said)

    def _act(self, situation: str, step: Step, said: int) -> str:
        """Choose and write the next act; return the situation it leads to, or '' when the step is done."""
        table = ACTS[situation, bool(self.operators)]
        act = self.rng.choices(list(table), weights=list(table.values()))[0]
        if act in (CONTINUE, ANSWER):
            self._mark(-1, table)
            return ""
        self._mark(CATEGORIES.index(act), table)
        return {REFLECT: self._reflect, SWITCH: self._switch, CONTRAST: self._contrast, DEDUCE: self._deduce}[
            act
        ](situation, step, said)

    def _mark(self, category: int, table: dict[str, float]) -> None:
        self.text.mark_onset(category, tuple(table.get(name, 0.0) for name in CATEGORIES))

    def _say(self, act: str, marker: str, words: str, *, slip_pending: bool = False) -> None:
        self.text.write(
            words, function=CATEGORIES.index(act), form=MARKERS.index(marker), slip_pending=slip_pending
        )

    def _recompute(self, act: str, marker: str, opening: str, check: Step, slipped: bool) -> None:
        """An opening and a recomputed step; a pending slip ends with the value written here."""
        self._say(
            act, marker, f"{opening} {check.left} {check.operator} {check.right} =", slip_pending=slipped
        )
        self._say(act, marker, f"{check.result}.")

    def _after_check(self, slipped: bool) -> str:
        if slipped:
            return "mismatch"
        if self.rng.random() < _P_CONFIRM:
            self.text.write(CONFIRMATION)
        return "checked"

    def _reflect(self, situation: str, step: Step, said: int) -> str:
        marker = self.rng.choice(FORMS[REFLECT])
        self._recompute(REFLECT, marker, REFLECTIONS[marker], step, situation == "slip")
        return self._after_check(situation == "slip")

    def _switch(self, situation: str, step: Step, said: int) -> str:
        marker = self.rng.choice(FORMS[SWITCH])
        self._recompute(SWITCH, marker, SWITCHES[marker], other_way(step), situation == "slip")
        return self._after_check(situation == "slip")

    def _contrast(self, situation: str, step: Step, said: int) -> str:
        marker = self.rng.choice(FORMS[CONTRAST])
        opening = CONTRASTS[marker]
        if situation == "slip":
            self._recompute(CONTRAST, marker, f"{opening} that is not right:", step, True)
            return "corrected"
        if situation == "mismatch":
            self._say(CONTRAST, marker, f"{opening} I said {said}.")
            return "corrected"
        self._say(CONTRAST, marker, f"{opening} there is more to do.")
        return "contrasted"

    def _deduce(self, situation: str, step: Step, said: int) -> str:
        marker = self.rng.choice(FORMS[DEDUCE])
        opening = CONCLUSIONS[marker]
        if situation == "mismatch":
            self._say(DEDUCE, marker, f"{opening} it is {step.result}, not {said}.")
            return "corrected"
        if self.operators:
            self._say(DEDUCE, marker, f"{opening} we have {write_expression(self.operands, self.operators)}.")
        else:
            self._say(DEDUCE, marker, f"{opening} the answer is {self.operands[0]}.")
        return "deduced"
