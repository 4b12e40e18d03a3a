"""Labelled text: what the grammar writes and knows about every token it writes."""

from dataclasses import dataclass, field

from crosscoders.reasoning import CATEGORIES
from crosscoders.zoo.vocabulary import encode

NO_CATEGORY = -1
_N = len(CATEGORIES)
NO_PROBABILITY = (0.0,) * _N

FORMS: dict[str, tuple[str, ...]] = {
    "self-reflection": ("Wait", "Hold", "Let"),
    "deductive": ("Therefore", "Thus", "So"),
    "alternative": ("Alternatively", "Another", "Or"),
    "contrastive": ("But", "However", "Yet"),
}
MARKERS: tuple[str, ...] = tuple(word for words in FORMS.values() for word in words)


@dataclass(slots=True)
class LabelledText:
    """One document with the truth about each token, as parallel lists.

    `function` is the index in `CATEGORIES` of the reasoning act that the token belongs to, or -1; `form`
    the index in
    `MARKERS` of that act's marker, or -1; `onset` the category of the clause that starts at the *next*
    token, or -1;
    `is_slip` marks the digits of a wrong value where it is first written; `slip_pending` whether a wrong
    value stands
    uncorrected; `p_category` the generator's own probability, at that token, that a clause of each category
    starts next;
    `is_prompt` the part that a model is given.
    """

    origin: str
    ids: list[int] = field(default_factory=list)
    function: list[int] = field(default_factory=list)
    form: list[int] = field(default_factory=list)
    onset: list[int] = field(default_factory=list)
    is_slip: list[bool] = field(default_factory=list)
    slip_pending: list[bool] = field(default_factory=list)
    p_category: list[tuple[float, ...]] = field(default_factory=list)
    is_prompt: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def write(
        self,
        text: str,
        *,
        function: int = NO_CATEGORY,
        form: int = NO_CATEGORY,
        is_slip: bool = False,
        slip_pending: bool = False,
        is_prompt: bool = False,
    ) -> None:
        """Append a phrase whose tokens share their labels."""
        ids = encode(text)
        n = len(ids)
        self.ids += ids
        self.function += [function] * n
        self.form += [form] * n
        self.onset += [NO_CATEGORY] * n
        self.is_slip += [is_slip] * n
        self.slip_pending += [slip_pending] * n
        self.p_category += [NO_PROBABILITY] * n
        self.is_prompt += [is_prompt] * n

    def close_sentence(
        self, *, function: int = NO_CATEGORY, form: int = NO_CATEGORY, slip_pending: bool = False
    ) -> None:
        """Append the final full stop (kept apart, since it attaches to the word before it)."""
        self.write(".", function=function, form=form, slip_pending=slip_pending)

    def mark_onset(self, category: int, probabilities: tuple[float, ...]) -> None:
        """Label the last token written: which category's clause starts next, and how likely each was."""
        self.onset[-1] = category
        self.p_category[-1] = probabilities
