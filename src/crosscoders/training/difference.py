"""Batches of the difference of two sources: what a difference SAE trains on."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.sources import Source, check_activations, column_slices, compared_pair
from crosscoders.training.batches import BatchStream, ResumableBatches, count_tokens


@final
class DifferenceBatches:
    """Second minus first source of every row, as the rows of one source.

    A crosscoder over that one source is a sparse autoencoder of the difference: the baseline that sees only
    what changed, not what both models have. It reads raw activations, so it needs one width and one space.
    `state_dict` and `load_state_dict` serve a trainer's checkpoints if the batches can be resumed, and
    `n_tokens` gives their length if they know it.

    Args:
        batches: `[batch, width]` tensors of raw activations of all sources, as for `Trainer.fit`.
        sources: Sources in the order of their columns.
        pair: Names of the first and the second source; None for the first and the last.

    Raises:
        ValueError: The two differ in width or are not there; in iteration, a batch of another width.

    Example:
        >>> import torch
        >>> from crosscoders.sources import Source
        >>> from crosscoders.training import DifferenceBatches
        >>> sources = (Source(name="base", d_model=2), Source(name="distilled", d_model=2))
        >>> batches = DifferenceBatches([torch.tensor([[1.0, 2.0, 1.5, 0.0]])], sources)
        >>> batches.source.name, next(iter(batches))
        ('distilled - base', tensor([[ 0.5000, -2.0000]]))
    """

    @typed
    def __init__(
        self,
        batches: Iterable[Any],
        sources: Sequence[Source],
        *,
        pair: tuple[str, str] | None = None,
    ) -> None:
        self._first, self._second = compared_pair(sources, pair, where="DifferenceBatches", one_width=True)
        self._batches = batches
        self._sources = tuple(sources)
        self._position: dict[str, Any] | None = None
        self._stream: BatchStream | None = None

    @property
    def source(self) -> Source:
        """The difference as a source, its scale still 1: estimate it from rows, as `estimate_scale` does."""
        first, second = self._first, self._second
        hook_name = first.hook_name if first.hook_name == second.hook_name else ""
        name = f"{second.name} - {first.name}"
        return Source(name=name, d_model=first.d_model, hook_name=hook_name)

    @property
    def n_tokens(self) -> int | None:
        """Rows of the whole run, or None if the batches do not know."""
        return count_tokens(self._batches)

    def __iter__(self) -> Iterator[Float[Tensor, "batch d_model"]]:
        """One pass, from the position that was loaded last, otherwise from where the batches begin."""
        position, self._position = self._position, None
        self._stream = BatchStream(self._batches, position=position)
        while (batch := self._stream.next_batch()) is not None:
            yield self._difference(batch)

    def state_dict(self) -> dict[str, Any] | None:
        """Position after the last batch given out, or None if the batches cannot be resumed."""
        if not isinstance(self._batches, ResumableBatches | Sequence):
            return None
        if self._stream is None:
            return self._position or {"n_served": 0, "state": self._state_of_batches()}
        return self._stream.position()

    @typed
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next pass start at that position.

        Args:
            state: A value of `state_dict`.
        """
        self._position, self._stream = dict(state), None

    def _state_of_batches(self) -> dict[str, Any] | None:
        return self._batches.state_dict() if isinstance(self._batches, ResumableBatches) else None

    def _difference(self, batch: object) -> Tensor:
        rows = check_activations(batch, self._sources, where="DifferenceBatches")
        columns = column_slices(self._sources)
        return rows[:, columns[self._second.name]] - rows[:, columns[self._first.name]]
