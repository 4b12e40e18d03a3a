"""Top-activating snippets of a latent as plain text, the activating token marked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._typing import typed


@dataclass(frozen=True, kw_only=True)
class Snippet:
    """Some tokens around the one on which a latent fires, as text before, at and after it.

    Args:
        activation: The latent's activation there.
        before: Text before the token, from the same document.
        token: The token itself.
        after: Text after it, from the same document.
    """

    activation: float
    before: str
    token: str
    after: str

    def __str__(self) -> str:
        return f"{self.activation:7.2f}  {self.before}[[{self.token}]]{self.after}"


@typed
def top_snippets(
    activations: Float[Tensor, "batch pos"],
    tokens: Int[Tensor, "batch pos"],
    tokenizer: Any,
    *,
    n: int = 8,
    n_before: int = 16,
    n_after: int = 7,
) -> list[Snippet]:
    """The places where a latent fires most, at most one per row of text.

    Args:
        activations: The latent's activation at each token; zero or less where it does not fire or does not
            count.
        tokens: Token ids.
        tokenizer: The tokenizer that made them.
        n: Snippets wanted; fewer where the latent fires in fewer rows.
        n_before: Tokens shown before the activating one.
        n_after: Tokens shown after it.

    Returns:
        Snippets, the strongest first.
    """
    peak, at = activations.max(dim=1)
    rows = torch.argsort(peak, descending=True, stable=True)[:n].tolist()
    return [
        _snippet(tokens[row].tolist(), int(at[row]), float(peak[row]), tokenizer, n_before, n_after)
        for row in rows
        if peak[row] > 0
    ]


def _snippet(
    ids: Sequence[int], at: int, activation: float, tokenizer: Any, n_before: int, n_after: int
) -> Snippet:
    end = tokenizer.eos_token_id
    before = list(ids[max(0, at - n_before) : at])
    if end in before:  # stay inside the document
        before = before[len(before) - before[::-1].index(end) :]
    after = list(ids[at + 1 : at + 1 + n_after])
    if end in after:
        after = after[: after.index(end)]
    whole = tokenizer.decode([*before, ids[at], *after])
    upto, head = tokenizer.decode([*before, ids[at]]), tokenizer.decode(before) if before else ""
    return Snippet(
        activation=activation,
        before=_plain(head),
        token=_plain(upto[len(head) :]),
        after=_plain(whole[len(upto) :]),
    )


def _plain(text: str) -> str:
    """Line breaks and control characters as visible escapes: a snippet is one line."""
    return "".join(ch if ch.isprintable() else ch.encode("unicode_escape").decode() for ch in text)
