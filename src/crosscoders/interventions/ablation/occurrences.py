"""Which occurrences of target tokens an ablation is measured on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from crosscoders._typing import typed


@dataclass(frozen=True, kw_only=True)
class Occurrences:
    """Chosen places of target tokens; what a model says of a target is read one position before it.

    Args:
        rows: Row of text of each.
        positions: Position of the target token in its row, at least 1.
        n_available: How many there were to choose from.
        n_asked: How many were asked for.
    """

    rows: Int[Tensor, " chosen"]
    positions: Int[Tensor, " chosen"]
    n_available: int
    n_asked: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_rows(self) -> int:
        """Rows of text that they stand in."""
        return len(self.rows.unique())


@dataclass(frozen=True, kw_only=True)
class OccurrenceBatch:
    """Some occurrences, one row of tokens each, cut behind the last position that is read.

    Args:
        which: Their numbers among all occurrences.
        rows: Row of text of each.
        tokens: Token ids up to the position that is read, and on to the end of the longest.
        read: Position at which each is read, one before its target.
        targets: Target token of each.
    """

    which: Int[Tensor, " batch"]
    rows: Int[Tensor, " batch"]
    tokens: Int[Tensor, "batch pos"]
    read: Int[Tensor, " batch"]
    targets: Int[Tensor, " batch"]


@typed
def choose_occurrences(
    mask: Bool[Tensor, "held_out pos"],
    *,
    n: int,
    generator: torch.Generator,
    counted: Bool[Tensor, "held_out pos"] | None = None,
    when_none: Literal["raise", "skip"] = "raise",
) -> Occurrences:
    """Choose occurrences at random, spread over rows: a second one of a row only after one of every row.

    The first token of a row is left out (nothing stands before it), and so is one that follows a token that
    is not counted.

    Args:
        mask: Where target tokens stand.
        n: How many to choose; where there are fewer, all are taken.
        generator: Source of randomness, on the CPU.
        counted: Positions at which a model may be read; None is everywhere.
        when_none: Whether nothing to choose from raises, or gives an empty choice.

    Returns:
        The choice, ordered by row and position.

    Raises:
        ValueError: `n` below 1, or nothing to choose from and `when_none` is "raise".
    """
    if n < 1:
        raise ValueError(f"choose_occurrences: n must be at least 1, got {n}.")
    usable = mask.clone()
    usable[:, :1] = False
    if counted is not None:
        usable[:, 1:] &= counted[:, :-1]
    found = usable.nonzero()
    if len(found) == 0 and when_none == "raise":
        raise ValueError(
            f"choose_occurrences: the mask has {int(mask.sum())} target tokens in {len(mask)} rows, and none "
            "of them follows a counted token of its row; check the target words, or give more text."
        )
    found = found[torch.randperm(len(found), generator=generator)]
    chosen = found[torch.argsort(_rank_in_row(found[:, 0]), stable=True)[:n]]
    chosen = chosen[torch.argsort(chosen[:, 0] * mask.shape[1] + chosen[:, 1])]
    return Occurrences(rows=chosen[:, 0], positions=chosen[:, 1], n_available=len(found), n_asked=n)


def _rank_in_row(rows: Tensor) -> Tensor:
    """For each entry how many earlier ones have the same value."""
    order = torch.argsort(rows, stable=True)
    _, counts = torch.unique_consecutive(rows[order], return_counts=True)
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    ranks = torch.empty_like(rows)
    ranks[order] = torch.arange(len(rows)) - starts
    return ranks


@typed
def single_token_id(tokenizer: Any, word: str) -> int:
    """The one token id of a target word, written as it stands in text (" Wait" and "Wait" may differ).

    Args:
        tokenizer: A transformers tokenizer.
        word: The word.

    Returns:
        The token id.

    Raises:
        ValueError: The word is several tokens, none, or not in the vocabulary; the message names the pieces.
    """
    ids = [int(index) for index in tokenizer.encode(word, add_special_tokens=False)]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        raise ValueError(f"single_token_id: {word!r} is not in the vocabulary; its pieces are {pieces}.")
    if len(ids) != 1:
        raise ValueError(
            f"single_token_id: a target must be one token, but {word!r} is {len(ids)}: {pieces}; choose one "
            "of these, or the word with a space before it."
        )
    return ids[0]


@typed
def occurrence_batches(
    tokens: Int[Tensor, "held_out pos"], occurrences: Occurrences, *, batch_size: int
) -> Iterator[OccurrenceBatch]:
    """The text before each occurrence, those of like length together.

    Args:
        tokens: The text.
        occurrences: Places in it.
        batch_size: Occurrences that go through a model together.

    Yields:
        Batches that together hold every occurrence once.

    Raises:
        ValueError: A place outside the text, or `batch_size` below 1.
    """
    rows, positions = occurrences.rows, occurrences.positions
    if batch_size < 1:
        raise ValueError(f"occurrence_batches: batch_size must be at least 1, got {batch_size}.")
    if bool(((rows < 0) | (rows >= len(tokens)) | (positions < 1) | (positions >= tokens.shape[1])).any()):
        raise ValueError(
            f"occurrence_batches: the text has {len(tokens)} rows of {tokens.shape[1]} tokens, but the "
            f"occurrences lie at rows {int(rows.min())} to {int(rows.max())} and positions "
            f"{int(positions.min())} to {int(positions.max())}; a position must be at least 1."
        )
    if len(occurrences) == 0:
        return
    for which in torch.argsort(positions, stable=True).split(batch_size):
        row, position = rows[which], positions[which]
        yield OccurrenceBatch(
            which=which,
            rows=row,
            tokens=tokens[row, : int(position.max())],
            read=position - 1,
            targets=tokens[row, position],
        )
