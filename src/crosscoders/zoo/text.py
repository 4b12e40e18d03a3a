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

    Args:
        origin: Kind of document.
        ids: Token ids.
        function: Index in `CATEGORIES` of the reasoning act that the token belongs to, or -1.
        form: Index in `MARKERS` of that act's marker, or -1.
        onset: Category of the clause that starts at the *next* token, or -1.
        is_slip: Marks the digits of a wrong value where it is first written.
        slip_pending: Whether a wrong value stands uncorrected.
        p_category: The generator's own probability, at that token, that a clause of each category starts
            next.
        is_prompt: The part that a model is given.
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
        """Append a phrase whose tokens share their labels.

        Args:
            text: The phrase.
            function: Category of the act that it belongs to, or -1.
            form: Marker of that act, or -1.
            is_slip: Whether it is a wrong value where that is first written.
            slip_pending: Whether a wrong value stands uncorrected.
            is_prompt: Whether it is part of what a model is given.

        Raises:
            ValueError: A word outside the vocabulary.
        """
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
        """Append the final full stop (kept apart, since it attaches to the word before it).

        Args:
            function: As for `write`.
            form: As for `write`.
            slip_pending: As for `write`.
        """
        self.write(".", function=function, form=form, slip_pending=slip_pending)

    def mark_onset(self, category: int, probabilities: tuple[float, ...]) -> None:
        """Label the last token written: which category's clause starts next, and how likely each was.

        Args:
            category: Index in `CATEGORIES`, or -1 if another act follows.
            probabilities: The generator's probability of each category.
        """
        self.onset[-1] = category
        self.p_category[-1] = probabilities
