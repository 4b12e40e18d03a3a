"""Questions about tokens that words alone can answer."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.reasoning.categories import LEXICON

_Joins = Callable[[int, int], bool]


@typed
def lexical_contrasts(
    tokens: Int[Tensor, "batch pos"], tokenizer: Any, *, lexicon: Mapping[str, tuple[str, ...]] | None = None
) -> dict[str, Int[Tensor, "batch pos"]]:
    """Questions that words alone can answer, for text without labels.

    `onset/<category>`: does one of the category's phrases start at the next token? `marker/<category>`:
    does one start at this token? Phrases are matched as token sequences, with and without a space before
    them, and as whole words: where decoding two neighbors shows that a word goes on from one to
    the other, no phrase begins or ends between them ("But" of "Butler" is none). A word is not an act: read a
    latent that answers these as tied to the words until labels say more.

    Args:
        tokens: Token ids.
        tokenizer: The tokenizer that made them.
        lexicon: Phrases per category; `LEXICON` if None.

    Returns:
        Per question one answer per token: 1 yes, 0 no.
    """
    contrasts, joins = {}, _word_joiner(tokenizer)
    for category, phrases in (LEXICON if lexicon is None else lexicon).items():
        starts = torch.zeros_like(tokens, dtype=torch.bool)
        for written in {variant for phrase in phrases for variant in (phrase, " " + phrase)}:
            phrase_ids = tokenizer.encode(written, add_special_tokens=False)
            if getattr(tokenizer, "unk_token_id", None) not in phrase_ids:  # else it is not in the vocabulary
                starts |= _phrase_starts(tokens, phrase_ids, joins)
        onset = torch.full_like(tokens, -1)  # what follows the last token of a row is not known
        onset[:, :-1] = starts[:, 1:].long()
        contrasts[f"onset/{category}"] = onset
        contrasts[f"marker/{category}"] = starts.long()
    return contrasts


def _phrase_starts(tokens: Tensor, phrase: list[int], joins: _Joins) -> Tensor:
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    n = tokens.shape[1] - len(phrase) + 1
    if phrase and n > 0:
        hits = torch.ones_like(tokens[:, :n], dtype=torch.bool)
        for at, token in enumerate(phrase):
            hits &= tokens[:, at : at + n] == token
        for row, at in hits.nonzero().tolist():
            ids = tokens[row, max(at - 1, 0) : at + len(phrase) + 1].tolist()
            begins_inside = at > 0 and joins(ids[0], ids[1])
            ends_inside = at < n - 1 and joins(ids[-2], ids[-1])
            starts[row, at] = not (begins_inside or ends_inside)
    return starts


def _word_joiner(tokenizer: Any) -> _Joins:
    """Whether a word goes on from one token to the next; never, for a tokenizer that cannot decode."""
    if not hasattr(tokenizer, "decode"):
        return lambda left, right: False
    known: dict[tuple[int, int], bool] = {}

    def joins(left: int, right: int) -> bool:
        if (left, right) not in known:
            first, both = tokenizer.decode([left]), tokenizer.decode([left, right])
            border = first[-1:] + both[len(first) :][:1] if both.startswith(first) else ""
            known[left, right] = re.fullmatch(r"\w\w", border) is not None
        return known[left, right]

    return joins
