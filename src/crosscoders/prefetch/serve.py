"""The producer's work: make the batches, answer questions about them, then serve until they end."""

import pickle
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from crosscoders.prefetch.messages import (
    Answer,
    Ended,
    Failed,
    Link,
    Opened,
    Request,
    Served,
    SupportsPrefetch,
    SupportsStored,
)
from crosscoders.sources import Source

_N_BATCHES = 8  # where the batches do not say how many make a window


def serve(make: Callable[[], Any], link: Link, *, n_batches: int | None, must_pickle: bool) -> None:
    """Run a producer from beginning to end; what is raised goes to the consumer.

    Args:
        make: Builds the batches.
        link: To the consumer.
        n_batches: Room; None for as many as a window of these batches has.
        must_pickle: Whether an error reaches the consumer by pickle only.
    """
    try:
        batches = _checked(make())
        link.open(n_batches or getattr(batches, "window_batches", _N_BATCHES))
        link.send(Opened(state=batches.state_dict(), n_tokens=getattr(batches, "n_tokens", None)))
        while (request := link.next_request()).kind != "run":
            link.send(_answer(batches, request))
        _serve_all(batches, link)
    except Exception as error:
        link.send(_failed(error, must_pickle=must_pickle))


def _checked(batches: Any) -> SupportsPrefetch:
    if not isinstance(batches, SupportsPrefetch):
        raise ValueError(
            "PrefetchedBatches: make() must give an iterable with state_dict and load_state_dict, such as "
            f"an ActivationBuffer, got {type(batches).__name__}."
        )
    return batches


def _answer(batches: SupportsPrefetch, request: Request) -> Answer:
    if request.kind == "load":
        assert request.state is not None
        batches.load_state_dict(request.state)
        return Answer(sources=None, state=batches.state_dict())
    sources = _sources(batches)
    return Answer(sources=sources, state=batches.state_dict())


def _serve_all(batches: SupportsPrefetch, link: Link) -> None:
    sources_told = False
    for rows, dtype in _stored(batches):
        place = link.store(rows)
        state = batches.state_dict()
        sources = None if sources_told else _sources(batches)
        sources_told = True
        link.send(
            Served(rows=place, dtype=dtype, state=state, sources=sources, harvest_seconds=link.waited_seconds)
        )
    link.send(Ended(state=batches.state_dict(), harvest_seconds=link.waited_seconds))


def _stored(batches: SupportsPrefetch) -> Iterator[tuple[Tensor, torch.dtype]]:
    """Each batch as it is kept, and the dtype in which it is to be given out."""
    iterator = iter(batches)
    is_stored = isinstance(batches, SupportsStored)
    while True:
        try:
            rows = batches.next_stored() if is_stored else next(iterator)
        except StopIteration:
            return
        if not isinstance(rows, Tensor):
            raise ValueError(
                f"PrefetchedBatches: batches must be tensors [batch, width], got {type(rows).__name__}."
            )
        yield rows.detach(), torch.float32 if is_stored else rows.dtype


def _sources(batches: Any) -> tuple[Source, ...] | None:
    return tuple(batches.sources) if hasattr(type(batches), "sources") or "sources" in vars(batches) else None


def _failed(error: Exception, *, must_pickle: bool) -> Failed:
    where = "".join(traceback.format_exception(error))
    told = RuntimeError(f"{type(error).__name__}: {error}")
    if isinstance(error, StopIteration):  # raised again it would end the consumer's loop without a word
        return Failed(error=told, where=where)
    if not must_pickle:
        return Failed(error=error, where=None)
    try:
        is_same = str(pickle.loads(pickle.dumps(error))) == str(error)
    except Exception:
        is_same = False
    return Failed(error=error if is_same else told, where=where)
