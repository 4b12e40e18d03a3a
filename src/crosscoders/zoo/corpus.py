"""Labelled text as tensors: packed rows of tokens with the truth about each token beside it."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.models.tokens import pack_rows
from crosscoders.reasoning import CATEGORIES
from crosscoders.zoo.base_text import DRILL, SOLUTION, STORY, write_drill, write_solution, write_story
from crosscoders.zoo.text import FORMS, MARKERS, LabelledText
from crosscoders.zoo.traces import TRACE, write_trace
from crosscoders.zoo.vocabulary import END_OF_TEXT, token_ids

SAMPLE = "sample"
ORIGINS: tuple[str, ...] = (STORY, DRILL, SOLUTION, TRACE, SAMPLE)
_WRITERS: dict[str, Callable[[random.Random], LabelledText]] = {
    STORY: write_story,
    DRILL: write_drill,
    SOLUTION: write_solution,
    TRACE: write_trace,
}


@dataclass(frozen=True, kw_only=True)
class LabelledTokens:
    """Rows of whole documents, padded on the right, with labels per token (-1 or False on padding).

    Args:
        tokens: Token ids; end-of-text closes each document and fills the rest of a row.
        origin: Kind of document, an index into `ORIGINS`.
        function: Category of the act that the token belongs to, an index into `CATEGORIES`, or -1.
        form: Marker word of that act, an index into `MARKERS`, or -1.
        onset: Category of the clause that starts at the *next* token, or -1.
        slip_pending: Whether a wrong value stands uncorrected.
        is_prompt: Whether the token is part of what a model is given.
        p_category: The generator's own probability that a clause of each category starts next; zeros where
            it draws no act.
    """

    tokens: Int[Tensor, "batch pos"]
    origin: Int[Tensor, "batch pos"]
    function: Int[Tensor, "batch pos"]
    form: Int[Tensor, "batch pos"]
    onset: Int[Tensor, "batch pos"]
    slip_pending: Bool[Tensor, "batch pos"]
    is_prompt: Bool[Tensor, "batch pos"]
    p_category: Float[Tensor, "batch pos category"]

    @property
    def is_text(self) -> Bool[Tensor, "batch pos"]:
        """True for tokens of documents, False for end-of-text and padding."""
        return self.origin >= 0

    @typed
    def rows(self, which: slice | Int[Tensor, " chosen"]) -> "LabelledTokens":
        """A selection of rows, by slice or by number."""
        return LabelledTokens(**{field.name: getattr(self, field.name)[which] for field in fields(self)})


@typed
def write_documents(origin: str, *, n_tokens: int, seed: int) -> list[LabelledText]:
    """Documents of one origin with at least `n_tokens` tokens in all; the same seed gives the same documents.

    Args:
        origin: "story", "drill", "solution" or "trace".
        n_tokens: Tokens wanted.
        seed: Seed of the generator; use one that no training stage of the zoo uses.

    Returns:
        Documents in the order they were written.

    Raises:
        ValueError: Unknown origin.
    """
    if origin not in _WRITERS:
        raise ValueError(f"write_documents: origin must be one of {sorted(_WRITERS)}, got {origin!r}.")
    rng, texts, written = random.Random(f"corpus/{origin}/{seed}"), [], 0
    while written < n_tokens:
        texts.append(_WRITERS[origin](rng))
        written += len(texts[-1])
    return texts


@typed
def pack_labelled(texts: Sequence[LabelledText], *, length: int = 256) -> LabelledTokens:
    """Pack whole documents, each closed by end-of-text, into rows of `length` tokens.

    Args:
        texts: Labelled documents of any origins; their order decides how they are packed.
        length: Tokens per row.

    Returns:
        As many rows as needed.

    Raises:
        ValueError: A document is longer than a row.
    """
    rows = pack_rows([len(text) + 1 for text in texts], length=length)
    n, end = len(rows), token_ids()[END_OF_TEXT]
    packed = {
        name: torch.full((n, length), -1, dtype=torch.int64)
        for name in ("origin", "function", "form", "onset")
    }
    packed |= {name: torch.zeros(n, length, dtype=torch.bool) for name in ("slip_pending", "is_prompt")}
    packed["tokens"] = torch.full((n, length), end, dtype=torch.int64)
    packed["p_category"] = torch.zeros(n, length, len(CATEGORIES))
    for row, members in enumerate(rows):
        start = 0
        for text in (texts[member] for member in members):
            _place(packed, text, row=row, start=start)
            start += len(text) + 1
    return LabelledTokens(**packed)


def _place(packed: dict[str, Tensor], text: LabelledText, *, row: int, start: int) -> None:
    stop = start + len(text)
    packed["tokens"][row, start:stop] = torch.tensor(text.ids)
    packed["origin"][row, start:stop] = ORIGINS.index(text.origin)
    packed["p_category"][row, start:stop] = torch.tensor(text.p_category)
    for name in ("function", "form", "onset", "slip_pending", "is_prompt"):
        packed[name][row, start:stop] = torch.tensor(getattr(text, name))


@typed
def category_contrasts(labels: LabelledTokens) -> dict[str, Int[Tensor, "batch pos"]]:
    """The questions that a latent is scored on: per token 1 for positive, 0 for negative, -1 for not asked.

    `onset/<category>`: among tokens of the types that can precede a clause, inside the generator's traces
    (their prompts left out), does a clause of this category start next? `function/<category>/<marker>`:
    among all uses of one marker word in any text, is this one an act of the category?
    `inside/<category>`: among all tokens, is this one part of such an act?

    Args:
        labels: Labelled tokens.

    Returns:
        One tensor per question.
    """
    in_trace = (labels.origin == ORIGINS.index(TRACE)) & ~labels.is_prompt
    contrasts: dict[str, Tensor] = {}
    for index, category in enumerate(CATEGORIES):
        starts = in_trace & (labels.onset == index)
        same_type = torch.isin(labels.tokens, labels.tokens[starts].unique()) & in_trace
        contrasts[f"onset/{category}"] = _question(starts, same_type)
        contrasts[f"inside/{category}"] = _question(labels.function == index, labels.is_text)
        for marker in FORMS[category]:
            uses = labels.tokens == token_ids()["\u2581" + marker]
            acts = (labels.form == MARKERS.index(marker)) & (labels.function == index)
            contrasts[f"function/{category}/{marker}"] = _question(acts, uses)
    return contrasts


def _question(positive: Tensor, asked: Tensor) -> Tensor:
    answers = torch.full(positive.shape, -1, dtype=torch.int64)
    answers[asked] = positive[asked].long()
    return answers
