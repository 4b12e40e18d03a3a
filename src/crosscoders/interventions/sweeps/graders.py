r"""Whether an answer is right: one protocol, and graders for GSM8K's numbers and MATH's boxed results.

Numbers are compared exactly, as fractions. Nothing is ever evaluated: what is neither a number nor the same
expression up to notation counts as wrong.
"""

import re
from fractions import Fraction
from typing import Protocol

from crosscoders._typing import typed

_MINUS = r"[-\u2212]"
_CURRENCY = r"(?:\\?[$]|[\u20ac\u00a3\u00a5])"
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?<![\w.])(?:(?P<minus>{_MINUS})\s?)?{_CURRENCY}?(?P<sign>{_MINUS})?(?P<value>{_DIGITS})"
)
_ANSWER_IS = re.compile(r"answer\s+is\b(?P<clause>[^\n]*)", re.IGNORECASE)
# A number must follow at once: "#### Step 2" is a heading.
_AFTER_HASHES = re.compile(rf"####\s*(?={_MINUS}|{_CURRENCY}|\.?\d)(?P<clause>[^\n]*)")


class Grader(Protocol):
    """Says whether an answer is right; `Material.grade` and `sweep` take its `grade`."""

    @typed
    def grade(self, answer: str, reference: str) -> bool:
        """Whether the text of an answer gives what the reference gives.

        Args:
            answer: What a model wrote, the prompt left out.
            reference: The right answer, in the data set's own form.

        Returns:
            True if it does.

        Raises:
            ValueError: The reference holds nothing to compare with.
        """
        ...


class GSM8KGrader:
    r"""Compares final numbers exactly: `#### 42`, "The answer is $42.00.", `\boxed{42}` and "... 42" agree.

    The answer's number is the one after its last `####`; else the one in its last `\boxed{}`; else the one
    in the last sentence with "answer is" (after its last "=", if any); else the last of the text. Thousands
    commas, currency signs, units and trailing full stops are left out. The reference is read in the same
    way, so both a whole solution and a plain number serve.

    Example:
        is_right = GSM8KGrader().grade("She pays 18 + 24 = $42.", "... #### 42")
    """

    @typed
    def grade(self, answer: str, reference: str) -> bool:
        """Whether the answer's final number equals the reference's.

        Args:
            answer: What a model wrote.
            reference: A GSM8K solution (`... #### 42`) or a number.

        Returns:
            True if it does; False without a number.

        Raises:
            ValueError: The reference holds no number.
        """
        wanted = final_number(reference)
        if wanted is None:
            raise ValueError(
                f"GSM8KGrader: the reference {reference[-80:]!r} holds no number; expected '#### 42' or '42'."
            )
        return final_number(answer) == wanted


class BoxedGrader:
    r"""Compares MATH answers: the last `\boxed{...}` of the answer with the reference, up to notation.

    Fractions (`\dfrac`, `\tfrac`, `a/b`, decimals, mixed numbers) are compared as exact rationals, tuples
    entry by entry, anything else as text without spaces, `\left`, `\right`, degree and percent signs,
    units, and a leading "x =". Two expressions that are equal only by algebra count as different, so that
    the accuracy is, if anything, too low.

    Example:
        is_right = BoxedGrader().grade(r"so it is \boxed{\dfrac{1}{2}}.", "0.5")
    """

    @typed
    def grade(self, answer: str, reference: str) -> bool:
        r"""Whether the last box of the answer says what the reference says; False without a whole box.

        Args:
            answer: What a model wrote.
            reference: The result itself, or a solution whose last `\boxed{...}` holds it.

        Returns:
            True if it does.

        Raises:
            ValueError: The reference is empty.
        """
        in_box = last_boxed(reference)
        wanted = reference if in_box is None else in_box
        if not wanted.strip():
            raise ValueError("BoxedGrader: the reference is empty; expected a result such as '6.17'.")
        found = last_boxed(answer)
        return found is not None and same_result(found, wanted)


@typed
def final_number(text: str) -> Fraction | None:
    """The number that a text ends up with, by the rules of `GSM8KGrader`; None if it holds none.

    Args:
        text: An answer or a reference.
    """
    plain = text.replace("{,}", ",")
    for clause in reversed(_AFTER_HASHES.findall(plain)):
        return _first_number(clause)
    boxed = last_boxed(plain)
    if boxed is not None:
        return _first_number(_after_equals(boxed))
    for clause in reversed(_ANSWER_IS.findall(plain)):
        number = _first_number(_after_equals(_sentence(clause)))
        if number is not None:
            return number
    found = list(_NUMBER.finditer(plain))
    return _value(found[-1]) if found else None


@typed
def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}` (or `\fbox{...}`) whose braces close; None without one.

    Args:
        text: Any text.
    """
    for opening in reversed(list(re.finditer(r"\\f?boxed\s*\{", text))):
        inside = _balanced(text, opening.end())
        if inside is not None:
            return inside
    return None


@typed
def same_result(one: str, other: str) -> bool:
    r"""Whether two LaTeX results are the same number, tuple or expression, up to notation.

    Args:
        one: Such as `\dfrac{1}{2}`.
        other: Such as `0.5`.
    """
    return _same(_plain_form(one), _plain_form(other))


def _first_number(text: str) -> Fraction | None:
    found = _NUMBER.search(text)
    return _value(found) if found else None


def _value(found: re.Match[str]) -> Fraction:
    value = Fraction(found.group("value").replace(",", ""))
    return -value if found.group("minus") or found.group("sign") else value


def _after_equals(text: str) -> str:
    return text.rsplit("=", 1)[-1]


def _sentence(text: str) -> str:
    """A text up to the full stop that ends its first sentence; decimal points stay."""
    return re.split(r"[.!?](?:\s|$)", text, maxsplit=1)[0]


def _balanced(text: str, start: int) -> str | None:
    """From `start` to the brace that closes the one just before it."""
    depth = 1
    for at in range(start, len(text)):
        if text[at] in "{}" and text[at - 1] != "\\":
            depth += 1 if text[at] == "{" else -1
        if depth == 0:
            return text[start:at]
    return None


_SPACING = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\[!,;:> ]|\\q?quad|~|\\?[$]")
_UNIT_WORD = r"(?:[a-z]{3,}|[cmk]m|ft|in|mi|kg|lb|oz|hr|of)"  # "2 xy" is a product
_UNIT_WORDS = re.compile(
    rf"(?<=[\d}}])\s+{_UNIT_WORD}(?:\s+{_UNIT_WORD})*(?:\^\{{?[23]\}}?)?\.?$", re.IGNORECASE
)
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|rm)\s*\{(?P<words>[^{}]*)\}")
_UNIT_TEXT = re.compile(rf"(?<=[\d\}})])\s*{_TEXT.pattern}(?:\^\{{?[23]\}}?)?\.?$")
_SHORT_FRACTION = re.compile(r"\\frac(?P<above>\d|\{[^{}]*\})(?P<below>\d|\{[^{}]*\})")
_ASSIGNMENT = re.compile(r"^[A-Za-z](?:_\{?\w+\}?)?(?:\([A-Za-z]\))?=(?=.)")
_RATIONAL = re.compile(
    rf"(?P<sign>[-+]?)(?:(?P<whole>\d+)(?=\\frac))?"
    rf"(?:\\frac\{{(?P<above>-?\d+)\}}\{{(?P<below>-?\d+)\}}|(?P<left>{_DIGITS})(?:/(?P<right>\d+))?)"
)


def _plain_form(result: str) -> str:
    """One spelling for what is written in many ways."""
    text = _SPACING.sub(" ", result.replace("\u2212", "-").replace("{,}", ","))
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degree|\\?%|\u00b0", "", text)
    text = re.sub(r"\\[dtc]frac", r"\\frac", text).strip().removesuffix(".")
    text = _UNIT_WORDS.sub("", _UNIT_TEXT.sub("", text))
    text = _TEXT.sub(lambda found: found.group("words"), text)
    text = re.sub(r"\s+", "", text)
    text = _SHORT_FRACTION.sub(_whole_fraction, text)
    text = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text)
    return _ASSIGNMENT.sub("", text)


def _whole_fraction(found: re.Match[str]) -> str:
    above, below = (found.group(part).strip("{}") for part in ("above", "below"))
    return rf"\frac{{{above}}}{{{below}}}"


def _same(one: str, other: str) -> bool:
    left, right = _rational(one), _rational(other)
    if left is not None and right is not None:
        return left == right
    ours, theirs = _entries(one), _entries(other)
    if len(ours) > 1 and len(ours) == len(theirs) and (one[0], one[-1]) == (other[0], other[-1]):
        return all(_same(a, b) for a, b in zip(ours, theirs, strict=True))
    return one == other


def _rational(text: str) -> Fraction | None:
    """A plain form as an exact fraction, if it is a number."""
    found = _RATIONAL.fullmatch(text)
    if found is None:
        return None
    if found.group("left") is not None:
        above, below = Fraction(found.group("left").replace(",", "")), int(found.group("right") or 1)
    else:
        above, below = Fraction(found.group("above")), int(found.group("below"))
    if below == 0:
        return None
    value = int(found.group("whole") or 0) + above / below
    return -value if found.group("sign") == "-" else value


def _entries(text: str) -> list[str]:
    """The entries of a tuple, interval or set in brackets; one entry for anything else."""
    if len(text) < 2 or text[0] not in "([" or text[-1] not in ")]":
        return [text]
    entries, depth, start = [], 0, 1
    for at in range(1, len(text) - 1):
        depth += (text[at] in "([{") - (text[at] in ")]}")
        if text[at] == "," and depth == 0:
            entries.append(text[start:at])
            start = at + 1
    return [*entries, text[start:-1]]
