"""Questions about tokens that words alone can answer."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.reasoning.categories import LEXICON


@typed
def lexical_contrasts(
    tokens: Int[Tensor, "batch pos"], tokenizer: Any, *, lexicon: Mapping[str, tuple[str, ...]] | None = None
) -> dict[str, Int[Tensor, "batch pos"]]:
    """Questions that words alone can answer, for text without labels.

    `onset/<category>`: does one of the category's phrases start at the next token? `marker/<category>`:
    does one start at this token? Phrases are matched as token sequences, with and without a space before
    them. A word is not an act: read a latent that answers these as tied to the words until labels say more.

    Args:
        tokens: Token ids.
        tokenizer: The tokenizer that made them.
        lexicon: Phrases per category; `LEXICON` if None.

    Returns:
        Per question one answer per token: 1 yes, 0 no.
    """
    contrasts = {}
    for category, phrases in (LEXICON if lexicon is None else lexicon).items():
        starts = torch.zeros_like(tokens, dtype=torch.bool)
        for written in {variant for phrase in phrases for variant in (phrase, " " + phrase)}:
            phrase_ids = tokenizer.encode(written, add_special_tokens=False)
            if getattr(tokenizer, "unk_token_id", None) not in phrase_ids:  # else it is not in the vocabulary
                starts |= _phrase_starts(tokens, phrase_ids)
        onset = torch.full_like(tokens, -1)  # what follows the last token of a row is not known
        onset[:, :-1] = starts[:, 1:].long()
        contrasts[f"onset/{category}"] = onset
        contrasts[f"marker/{category}"] = starts.long()
    return contrasts


def _phrase_starts(tokens: Tensor, phrase: list[int]) -> Tensor:
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    n = tokens.shape[1] - len(phrase) + 1
    if phrase and n > 0:
        hits = torch.ones_like(tokens[:, :n], dtype=torch.bool)
        for at, token in enumerate(phrase):
            hits &= tokens[:, at : at + n] == token
        starts[:, :n] = hits
    return starts
