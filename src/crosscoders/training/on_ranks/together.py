"""Work that the ranks of a run do together: if it fails on one, it fails on all, with that error."""

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def on_main(call: Callable[[], T]) -> T:
    """What a call gives on rank 0, on every rank; so is what it raises."""
    return on_every_rank(lambda: call() if dist.get_rank() == 0 else None)[0]  # type: ignore[return-value]


def on_every_rank(call: Callable[[], T]) -> list[T]:
    """What a call gives on each rank; if it raises on any, every rank raises the first such error."""
    value: Any = None
    error: Exception | None = None
    try:
        value = call()
    except Exception as err:
        error = err
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, (value, _portable(error)))
    failed = [rank for rank, (_, failure) in enumerate(outcomes) if failure is not None]
    if failed:
        raise error if error is not None and failed[0] == dist.get_rank() else outcomes[failed[0]][1]
    return [value for value, _ in outcomes]


def _portable(error: Exception | None) -> Exception | None:
    """The error, or one that says the same where it cannot be sent to another process."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
