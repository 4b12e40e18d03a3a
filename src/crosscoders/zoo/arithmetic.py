"""Arithmetic problems of tiny-reasoner: sampling, worked steps, and which problems are held out.

A problem has 2 to 4 operands in 0..99 joined by `+`, `-` and `x` with the usual precedence. Every
intermediate result stays in 0..999, and one factor of every product is a single digit. A problem is held out
when a hash of the *multiset* of its operands says so; no training text ever contains such a problem, in any
order and with any operators.
"""

import random
import zlib
from dataclasses import dataclass

MAX_OPERAND = 99
MAX_VALUE = 999
HELD_OUT_FRACTION = 0.1
_TERM_WEIGHTS = {2: 0.3, 3: 0.4, 4: 0.3}
_OPERATOR_WEIGHTS = {"+": 0.4, "-": 0.3, "x": 0.3}


@dataclass(frozen=True, slots=True)
class Step:
    """One worked step `left operator right = result`."""

    left: int
    operator: str
    right: int
    result: int


@dataclass(frozen=True, slots=True)
class Problem:
    """Operands and the operators between them, in written order."""

    operands: tuple[int, ...]
    operators: tuple[str, ...]

    @property
    def expression(self) -> str:
        """The problem as written, for example `25 + 13 x 4`."""
        return write_expression(self.operands, self.operators)

    @property
    def is_held_out(self) -> bool:
        """Whether the multiset of operands is reserved for evaluation."""
        return is_held_out(self.operands)


def write_expression(operands: tuple[int, ...], operators: tuple[str, ...]) -> str:
    """Operands and operators as `a op b op c` with single spaces."""
    parts = [str(operands[0])]
    for operator, operand in zip(operators, operands[1:], strict=True):
        parts += [operator, str(operand)]
    return " ".join(parts)


def is_held_out(operands: tuple[int, ...]) -> bool:
    """Whether a multiset of operands is reserved for evaluation (a CRC-32 of the sorted operands decides)."""
    digest = zlib.crc32(" ".join(map(str, sorted(operands))).encode())
    return digest % 1000 < 1000 * HELD_OUT_FRACTION


def apply(operator: str, left: int, right: int) -> int:
    """The exact result of one operation, `operator` being "+", "-" or "x"."""
    return left + right if operator == "+" else left - right if operator == "-" else left * right


def reduce_once(
    operands: tuple[int, ...], operators: tuple[str, ...]
) -> tuple[Step, tuple[int, ...], tuple[str, ...]]:
    """Work out the next operation (products first, then left to right) and put its result in its place.

    Args:
        operands: At least two.
        operators: One fewer.

    Returns:
        The step, and the operands and operators that remain.
    """
    at = operators.index("x") if "x" in operators else 0
    left, right = operands[at], operands[at + 1]
    step = Step(left, operators[at], right, apply(operators[at], left, right))
    return step, (*operands[:at], step.result, *operands[at + 2 :]), (*operators[:at], *operators[at + 1 :])


def worked_steps(problem: Problem) -> list[Step]:
    """All steps of the solution in order; the last one's result is the answer."""
    operands, operators, steps = problem.operands, problem.operators, []
    while operators:
        step, operands, operators = reduce_once(operands, operators)
        steps.append(step)
    return steps


def answer(problem: Problem) -> int:
    """The value of the expression."""
    return worked_steps(problem)[-1].result


def is_allowed(problem: Problem) -> bool:
    """Whether the language has this problem.

    Every intermediate result lies in 0..999, and every product has a one-digit factor beside one of at most
    two digits.
    """
    for step in worked_steps(problem):
        if not 0 <= step.result <= MAX_VALUE:
            return False
        if step.operator == "x" and not (
            min(step.left, step.right) <= 9 and max(step.left, step.right) <= MAX_OPERAND
        ):
            return False
    return True


def sample_problem(rng: random.Random, *, held_out: bool = False) -> Problem:
    """Draw an allowed problem from one side of the split.

    Args:
        rng: Source of randomness; advanced until a problem fits.
        held_out: Draw from the held-out side instead of the training side.
    """
    while True:
        n_terms = rng.choices(list(_TERM_WEIGHTS), weights=list(_TERM_WEIGHTS.values()))[0]
        operators = tuple(
            rng.choices(list(_OPERATOR_WEIGHTS), weights=list(_OPERATOR_WEIGHTS.values()), k=n_terms - 1)
        )
        problem = Problem(_sample_operands(rng, operators), operators)
        if problem.is_held_out == held_out and is_allowed(problem):
            return problem


def _sample_operands(rng: random.Random, operators: tuple[str, ...]) -> tuple[int, ...]:
    operands = [rng.randint(0, MAX_OPERAND) for _ in range(len(operators) + 1)]
    for at, operator in enumerate(operators):
        if operator == "x":  # a single-digit factor on a random side
            operands[at + rng.randint(0, 1)] = rng.randint(0, 9)
    return tuple(operands)


def slip_value(rng: random.Random, step: Step) -> int:
    """A wrong result for a step: one of its operands, written down again in place of the result.

    Where both operands equal the result (`0 + 0`), the result itself comes back.

    Args:
        rng: Source of the choice.
        step: The right step.
    """
    return rng.choice(
        [operand for operand in (step.left, step.right) if operand != step.result] or [step.result]
    )


def other_way(step: Step) -> Step:
    """Another route to the same fact: swapped operands, or the addition that a subtraction undoes."""
    if step.operator == "-":
        return Step(step.result, "+", step.right, apply("+", step.result, step.right))
    return Step(step.right, step.operator, step.left, step.result)
