"""The grader of tiny-reasoner's arithmetic."""

from crosscoders._typing import typed
from crosscoders.zoo.parser import stated_answer


class ArithmeticGrader:
    """Compares the last `Answer: N.` of an answer with the reference (a `crosscoders` `Grader`).

    Example:
        is_right = ArithmeticGrader().grade("First, 2 + 2 = 4. Answer: 4.", "4")
    """

    @typed
    def grade(self, answer: str, reference: str) -> bool:
        """Whether the answer states the reference's value; False if it states none.

        Args:
            answer: What a model wrote.
            reference: The value as digits, or a worked solution that states it.

        Raises:
            ValueError: The reference gives no value.
        """
        wanted = int(reference) if reference.strip().isdecimal() else stated_answer(reference)
        if wanted is None:
            raise ValueError(
                f"ArithmeticGrader: the reference {reference!r} gives no value; expected '42' or "
                "'... Answer: 42.'."
            )
        return stated_answer(answer) == wanted
