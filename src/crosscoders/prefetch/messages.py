"""What passes between the side that makes batches (the producer) and the side that trains on them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from crosscoders.sources import Source


@runtime_checkable
class SupportsPrefetch(Protocol):
    """What can be made in the background: batches that know their position, such as `ActivationBuffer`.

    `sources`, `n_tokens`, `window_batches` and `next_stored` are used where they exist.
    """

    def __iter__(self) -> Iterator[Tensor]: ...

    def state_dict(self) -> dict[str, Any]:
        """Position after the last batch given out."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next iteration start at that position."""
        ...


@runtime_checkable
class SupportsStored(Protocol):
    """Batches that can be had in the dtype in which they are kept, float32 being what they stand for."""

    def next_stored(self) -> Tensor:
        """The next batch without the copy to float32."""
        ...


@dataclass(frozen=True)
class Request:
    """What the consumer asks of a producer that has not begun to serve; `run` makes it begin."""

    kind: Literal["sources", "load", "run"]
    state: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Where a batch lies in the shared memory."""

    index: int
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Opened:
    """The batches exist; nothing was harvested yet."""

    state: dict[str, Any]
    n_tokens: int | None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Reply to a request, and the position after it."""

    sources: tuple[Source, ...] | None
    state: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Served:
    """One batch, as rows in their stored dtype or as the slot that holds them, and the position after it.

    `sources` come with the first batch, whose window tells their scales.
    """

    rows: Tensor | Slot
    dtype: torch.dtype
    state: dict[str, Any]
    sources: tuple[Source, ...] | None
    harvest_seconds: float


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The batches ended."""

    state: dict[str, Any]
    harvest_seconds: float


@dataclass(frozen=True, kw_only=True)
class Failed:
    """Something was raised; `where` is the producer's traceback if the error cannot carry it itself."""

    error: Exception
    where: str | None


Message = Opened | Answer | Served | Ended | Failed


@runtime_checkable
class Link(Protocol):
    """The producer's end: how it hears requests and hands over batches."""

    waited_seconds: float

    def open(self, n_batches: int) -> None:
        """Make room for that many batches."""
        ...

    def next_request(self) -> Request:
        """Wait for the next request."""
        ...

    def send(self, message: Message) -> None:
        """Send a message that needs no room."""
        ...

    def store(self, rows: Tensor) -> Tensor | Slot:
        """Wait for room and keep the rows there; `waited_seconds` counts the time."""
        ...


@runtime_checkable
class Producer(Protocol):
    """The consumer's end."""

    def ask(self, request: Request) -> None:
        """Send a request; the reply is the next message."""
        ...

    def receive(self) -> Message:
        """Wait for the next message."""
        ...

    def batch(self, served: Served) -> Tensor:
        """The batch that a message brought, on the consumer's device; its room is free again."""
        ...

    def close(self) -> None:
        """End the producer and free everything."""
        ...
