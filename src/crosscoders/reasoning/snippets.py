"""Snippets of text around the tokens on which a latent fires, the activating token marked."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.reasoning.visible import visible


@dataclass(frozen=True, kw_only=True)
class Snippet:
    """Some tokens around the one on which a latent fires, all from one document.

    Args:
        activation: The latent's activation at the marked token.
        pieces: The text of each token, which together are the text.
        activations: The latent's activation at each token; zero where it does not fire or does not count.
        at: Which of the tokens is marked.
        row: Row of the text that it comes from.
        position: Position of the marked token in that row.
    """

    activation: float
    pieces: tuple[str, ...]
    activations: tuple[float, ...]
    at: int
    row: int
    position: int

    @property
    def before(self) -> str:
        """Text before the marked token, line breaks as visible escapes."""
        return visible("".join(self.pieces[: self.at]))

    @property
    def token(self) -> str:
        """Text of the marked token, line breaks as visible escapes."""
        return visible(self.pieces[self.at])

    @property
    def after(self) -> str:
        """Text after the marked token, line breaks as visible escapes."""
        return visible("".join(self.pieces[self.at + 1 :]))

    @typed
    def marked(self, at: Collection[int] | None = None) -> str:
        """The text on one line with some tokens in double square brackets.

        Args:
            at: Tokens to mark, as indices into `pieces`; the marked one if None.

        Returns:
            One line; line breaks and control characters are escaped.
        """
        chosen = {self.at} if at is None else set(at)
        return visible(
            "".join(f"[[{piece}]]" if index in chosen else piece for index, piece in enumerate(self.pieces))
        )

    def __str__(self) -> str:
        return f"{self.activation:7.2f}  {self.marked()}"


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
    places = [(row, int(at[row])) for row in rows if peak[row] > 0]
    return _snippets_at(places, activations, tokens, tokenizer, n_before, n_after)


@typed
def quantile_snippets(
    activations: Float[Tensor, "batch pos"],
    tokens: Int[Tensor, "batch pos"],
    tokenizer: Any,
    *,
    n: int = 4,
    n_before: int = 16,
    n_after: int = 7,
) -> list[Snippet]:
    """One place from each quantile of a latent's activations, so that its weak side is seen too.

    Of the m tokens on which it fires, in the order of their activation, the (i + 1/2) m / n -th for
    i = 0 .. n - 1, rounded down: the middle of each of n equal parts.

    Args:
        activations: The latent's activation at each token; zero or less where it does not fire or does not
            count.
        tokens: Token ids.
        tokenizer: The tokenizer that made them.
        n: Quantiles; fewer where it fires on fewer tokens.
        n_before: Tokens shown before the activating one.
        n_after: Tokens shown after it.

    Returns:
        Snippets, the strongest first.
    """
    rows, positions = (activations > 0).nonzero(as_tuple=True)
    order = torch.argsort(activations[rows, positions], descending=True, stable=True)
    chosen = order[list(quantile_middles(len(order), n))]
    places = list(zip(rows[chosen].tolist(), positions[chosen].tolist()))
    return _snippets_at(places, activations, tokens, tokenizer, n_before, n_after)


def quantile_middles(n_items: int, n_parts: int) -> tuple[int, ...]:
    """Middle of each of `n_parts` equal parts of `n_items` ordered items; all items if there are fewer."""
    n_parts = min(n_parts, n_items)
    return tuple((2 * part + 1) * n_items // (2 * n_parts) for part in range(n_parts))


def make_snippet(
    ids: Sequence[int], activations: Sequence[float], *, at: int, place: tuple[int, int], tokenizer: Any
) -> Snippet:
    """A snippet from the tokens of a window, cut to the document of the marked token.

    Args:
        ids: Token ids of the window.
        activations: Activation at each of them.
        at: Index of the marked token in the window.
        place: Its row and position in the text.
        tokenizer: The tokenizer that made the ids.
    """
    end = tokenizer.eos_token_id
    start, stop = 0, len(ids)
    for index, token in enumerate(ids):
        if token == end and index < at:
            start = index + 1
        if token == end and index > at:
            stop = index
            break
    return Snippet(
        activation=float(activations[at]),
        pieces=token_pieces(ids[start:stop], tokenizer),
        activations=tuple(float(value) for value in activations[start:stop]),
        at=at - start,
        row=place[0],
        position=place[1],
    )


def token_pieces(ids: Sequence[int], tokenizer: Any) -> tuple[str, ...]:
    """The text that each token adds, so that the pieces together are the decoded text.

    A character that several tokens spell out byte by byte belongs to the token that completes it.
    """
    pieces, done = [], 0
    for n in range(1, len(ids) + 1):
        text = tokenizer.decode(list(ids[:n]))
        whole = text if n == len(ids) else text.rstrip("\ufffd")
        pieces.append(whole[done:])
        done = max(done, len(whole))
    return tuple(pieces)


def _snippets_at(
    places: Sequence[tuple[int, int]],
    activations: Tensor,
    tokens: Tensor,
    tokenizer: Any,
    n_before: int,
    n_after: int,
) -> list[Snippet]:
    found = []
    for row, position in places:
        window = slice(max(0, position - n_before), position + 1 + n_after)
        found.append(
            make_snippet(
                tokens[row, window].tolist(),
                activations[row, window].relu().tolist(),
                at=position - window.start,
                place=(row, position),
                tokenizer=tokenizer,
            )
        )
    return found
