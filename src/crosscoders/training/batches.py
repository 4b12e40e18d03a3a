"""The data side of a run: how long it is, where it stands, and whether a batch is fit to train on."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from crosscoders.sources import Source, check_activations, column_slices


@runtime_checkable
class ResumableBatches(Protocol):
    """Batches that remember their position, such as `ActivationBuffer`."""

    def state_dict(self) -> dict[str, Any]:
        """Position after the last batch given out."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next iteration start at that position."""
        ...


@runtime_checkable
class SizedBatches(Protocol):
    """Batches that know their length; a sequence of tensors is counted instead."""

    @property
    def n_tokens(self) -> int | None:
        """Tokens of the whole run, or None if only running tells."""
        ...


def count_tokens(batches: Iterable[Tensor]) -> int | None:
    """Tokens that these batches will give, or None if they do not know."""
    if isinstance(batches, SizedBatches):
        return batches.n_tokens
    if isinstance(batches, Sequence):
        return sum(batch.shape[0] for batch in batches)
    return None


@final
class BatchStream:
    """One pass over batches that can say where it stands.

    Args:
        batches: Any iterable of `[batch, width]` tensors.
        position: Where to start, from `position()` of an earlier stream; None for the beginning.

    Raises:
        ValueError: These batches cannot start at that position.
    """

    def __init__(self, batches: Iterable[Tensor], *, position: dict[str, Any] | None) -> None:
        self._batches = batches
        self.n_served = 0
        if position is None:
            self._iterator: Iterator[Tensor] = iter(batches)
        elif isinstance(batches, ResumableBatches) and position["state"] is not None:
            batches.load_state_dict(position["state"])
            self._iterator = iter(batches)
        elif isinstance(batches, Sequence) and position["state"] is None:
            self._iterator = islice(iter(batches), position["n_served"], None)
        else:
            raise ValueError(
                f"Trainer.fit: cannot resume at batch {position['n_served']} of a "
                f"{type(batches).__name__}; pass the kind of batches that the run began with: a sequence of "
                "tensors, or an iterable with state_dict and load_state_dict."
            )
        self.n_served = 0 if position is None else position["n_served"]

    def next_batch(self) -> Any:
        """The next batch, or None at the end."""
        batch = next(self._iterator, None)
        self.n_served += batch is not None
        return batch

    def position(self) -> dict[str, Any]:
        """Where the stream stands after the last batch given out."""
        state = self._batches.state_dict() if isinstance(self._batches, ResumableBatches) else None
        return {"n_served": self.n_served, "state": state}


def check_batch(batch: object, *, sources: Sequence[Source], step: int) -> Tensor:
    """Give back the batch if it can be trained on.

    Raises:
        ValueError: Not a floating `[batch, width]` tensor with at least one row, or NaN or infinity in it.
    """
    where = f"Trainer.fit: batch of step {step}"
    batch = check_activations(batch, sources, where=where)
    if batch.shape[0] == 0:
        raise ValueError(f"{where}: expected at least one row, got shape {tuple(batch.shape)}.")
    # A float64 sum is finite exactly if every entry is: one pass, one number to wait for.
    if not torch.isfinite(batch.sum(dtype=torch.float64)):
        raise ValueError(f"{where}: {_name_non_finite(batch, sources)}; no weight was updated.")
    return batch


def _name_non_finite(batch: Tensor, sources: Sequence[Source]) -> str:
    for name, columns in column_slices(sources).items():
        bad = ~batch[:, columns].isfinite()
        if bool(bad.any()):
            row = int(bad.any(dim=1).nonzero()[0])
            return f"source {name!r} has {int(bad.sum())} NaN or infinite values, the first in row {row}"
    return "the sum of its finite values overflows float64"


def length_of_run(batches: Iterable[Any], *, configured: int | None, begun_with: int | None) -> int:
    """Tokens of the whole run, on which the schedules depend.

    Args:
        batches: The data, which may know their length.
        configured: Length that the config asks for.
        begun_with: Length with which this run began, if it is not new.

    Raises:
        ValueError: Nobody knows the length, or it is not the one that the run began with.
    """
    total = configured or count_tokens(batches)
    if total is None:
        raise ValueError(
            f"Trainer.fit: a {type(batches).__name__} does not know how many tokens it holds, and "
            "the schedules need to; set TrainerConfig(total_tokens=...)."
        )
    if begun_with not in (None, total):
        raise ValueError(
            f"Trainer.fit: this run began with {begun_with} tokens in all, these batches "
            f"have {total}; pass the same data, or make a new Trainer."
        )
    return total
