"""Which positions of a row an intervention acts on."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.models.base import LanguageModel
from crosscoders.models.trace import TokenTrace


class Positions:
    """The positions at which a hook acts: those that meet every condition given; padding never does.

    Args:
        owner: Start of the messages.
        after: Strictly after this marker's first occurrence in the row: text (of a model that brings a
            tokenizer), one token id, or several ids in a row. None is everywhere.
        from_position: From this position of the row on, counted without left padding.
        positions: Only these positions of the row, counted without left padding. None is any.
        at_tokens: Only where the token read is one of these ids. None is any token.

    Raises:
        ValueError: A negative position, or no positions or tokens at all.
    """

    @typed
    def __init__(
        self,
        *,
        owner: str,
        after: str | int | Sequence[int] | None,
        from_position: int,
        positions: Sequence[int] | None,
        at_tokens: Sequence[int] | None,
    ) -> None:
        if at_tokens is not None and len(at_tokens) == 0:
            raise ValueError(f"{owner}: at_tokens is empty; None acts at every token.")
        if positions is not None and len(positions) == 0:
            raise ValueError(f"{owner}: positions is empty; None acts at every position.")
        if from_position < 0 or (positions is not None and min(positions) < 0):
            raise ValueError(
                f"{owner}: from_position and positions count from the start of the row and must be at least "
                f"0, got from_position={from_position}, positions={positions}."
            )
        self.after = after if after is None or isinstance(after, str | int) else tuple(after)
        self.from_position = from_position
        self.positions = None if positions is None else tuple(positions)
        self.at_tokens = None if at_tokens is None else tuple(at_tokens)

    @property
    def is_everywhere(self) -> bool:
        """Whether no condition was given."""
        given = (self.after, self.positions, self.at_tokens)
        return self.from_position == 0 and all(condition is None for condition in given)

    def describe(self) -> dict[str, Any]:
        """The conditions as JSON-ready facts."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()
        }

    @contextmanager
    def on(self, model: LanguageModel) -> Iterator[Callable[[], Tensor | None]]:
        """Follow a model's tokens while the block runs.

        Args:
            model: The model that is edited.

        Yields:
            A function that says, inside an edit, which new positions [batch pos] are chosen; None is all.

        Raises:
            ValueError: The marker cannot be turned into token ids.
        """
        if self.is_everywhere:
            yield lambda: None
            return
        marker = None if self.after is None else marker_ids(self.after, model)
        with model.trace_tokens() as trace:
            yield lambda: self._chosen(trace, marker)

    def _chosen(self, trace: TokenTrace, marker: tuple[int, ...] | None) -> Tensor:
        at = trace.positions()
        is_chosen = trace.is_real[:, -trace.n_new :] & (at >= self.from_position)
        if self.positions is not None:
            is_chosen = is_chosen & torch.isin(at, torch.tensor(self.positions, device=at.device))
        if marker is not None:
            is_chosen = is_chosen & trace.is_after(marker)
        if self.at_tokens is not None:
            is_chosen = is_chosen & trace.is_token(self.at_tokens)
        return is_chosen


@typed
def marker_ids(after: str | int | Sequence[int], model: LanguageModel) -> tuple[int, ...]:
    """Token ids of a marker.

    Args:
        after: Text, one token id, or several ids in a row.
        model: The model whose tokenizer and vocabulary count.

    Returns:
        One id or more.

    Raises:
        ValueError: Text without a tokenizer or outside its vocabulary, or ids that the model lacks.
    """
    if isinstance(after, str):
        if model.tokenizer is None:
            raise ValueError(
                f"after={after!r} needs a tokenizer, but {model.name!r} has none; pass token ids, or a "
                "LanguageModel made with load_model(model, name=..., tokenizer=...)."
            )
        ids = tuple(model.tokenizer(after, add_special_tokens=False)["input_ids"])
        if model.tokenizer.unk_token_id is not None and model.tokenizer.unk_token_id in ids:
            raise ValueError(
                f"after={after!r} is not in the vocabulary of {model.name!r}: its ids are {ids}."
            )
    else:
        ids = (after,) if isinstance(after, int) else tuple(after)
    if not ids or min(ids) < 0 or max(ids) >= model.n_vocab:
        raise ValueError(
            f"after={after!r} gives the ids {ids}; expected at least one id in [0, {model.n_vocab})."
        )
    return ids
