"""`PrefetchedBatches`: the same batches in the same order, made in the background."""

import copy
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.prefetch.messages import (
    Answer,
    Ended,
    Failed,
    Message,
    Opened,
    Producer,
    Request,
    Served,
)
from crosscoders.prefetch.process import ProcessProducer
from crosscoders.prefetch.thread import ThreadProducer
from crosscoders.prefetch.waits import Waits
from crosscoders.sources import Source


@final
class PrefetchedBatches:
    """Batches that a thread or another process makes ahead while these are trained on.

    They are bit-identical to those of what `make` builds, in the same order, and `state_dict` is the position
    after the last batch *given out*: a run may change between this and the plain batches at a resume.

    An `ActivationBuffer` harvests a window, then serves it. Harvest and training overlap fully only where the
    window on its way out has room here while the next one is harvested, which is what `n_batches=None` makes:
    the memory of a second window. A run that is one window long cannot overlap; ten or more lose little.

    In a thread the models must not be used by anyone else until `close`: hooks on one model would mix. In a
    process `make` loads models of its own, on devices of its choice, and torch has as many threads there as
    here (two processes on one CPU: set half the cores). Signals that reach the whole group of processes
    (SIGTERM, SIGINT, SIGHUP) are left to this side; the process ends when this one does, however it does.

    Args:
        make: Builds the batches: an `ActivationBuffer`, or any iterable of tensors with `state_dict` and
            `load_state_dict`. It is called in the thread or process, and again when batches are asked for
            after `close`. For a process it is pickled: a function of a module, or `functools.partial` of one.
        where: "thread" or "process".
        n_batches: Batches that may lie ready; None for as many as a window has, or 8 where there is none.
        device: Where batches are given out; on CUDA they come through pinned memory on a stream of their own.

    Raises:
        ValueError: `n_batches` below 1.

    Example:
        >>> import torch
        >>> from crosscoders.buffer import ActivationBuffer
        >>> from crosscoders.prefetch import PrefetchedBatches
        >>> from crosscoders.sources import Source
        >>> class Counting:
        ...     sources = (Source(name="ids", d_model=1),)
        ...     def harvest(self, tokens):
        ...         return tokens[..., None].float()
        >>> def make():
        ...     tokens, seed = list(torch.arange(1, 65).view(8, 8)[:, None]), torch.Generator().manual_seed(0)
        ...     return ActivationBuffer(Counting(), tokens, max_bytes=400, generator=seed, batch_tokens=16)
        >>> with PrefetchedBatches(make) as batches:
        ...     all(torch.equal(a, b) for a, b in zip(batches, make(), strict=True))
        True
    """

    @typed
    def __init__(
        self,
        make: Callable[[], Any],
        *,
        where: Literal["thread", "process"] = "thread",
        n_batches: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if n_batches is not None and n_batches < 1:
            raise ValueError(f"PrefetchedBatches: n_batches must be at least 1, got {n_batches}.")
        self._make, self._where, self._n_batches = make, where, n_batches
        self._device = torch.device(device)
        self._producer: Producer | None = None
        self._finalizer: weakref.finalize | None = None
        self._is_running = self._is_ended = False
        self._position: dict[str, Any] | None = None
        self._n_tokens: int | None = None
        self._sources: tuple[Source, ...] | None = None
        self._trainer_seconds = self._harvest_seconds = self._harvest_seconds_before = 0.0
        self._first_request = self._last_batch = 0.0

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources of the batches, with their scales.

        Reading it before the first batch harvests the first window, as it does for the buffer.
        """
        if self._sources is None:
            if not self._is_running:
                answer = self._asked(Request("sources"))
                self._sources, self._position = answer.sources, answer.state
            if self._sources is None:
                raise AttributeError("PrefetchedBatches: what make() built does not know its sources.")
        return self._sources

    @property
    def n_tokens(self) -> int | None:
        """Rows of the whole run, or None where only running tells."""
        if self._position is None:
            self._opened()
        return self._n_tokens

    @property
    def waits(self) -> Waits:
        """How long each side has waited for the other, in all loops over these batches."""
        return Waits(
            trainer_seconds=self._trainer_seconds,
            harvest_seconds=self._harvest_seconds_before + self._harvest_seconds,
            elapsed_seconds=self._last_batch - self._first_request,
        )

    def __iter__(self) -> Iterator[Float[Tensor, "batch width"]]:
        if self._is_ended:
            raise RuntimeError(
                "PrefetchedBatches: all batches were served; make() with more epochs to repeat the data."
            )
        self._run()
        return self

    def __next__(self) -> Float[Tensor, "batch width"]:
        if self._is_ended:
            raise StopIteration
        producer = self._run()
        began = time.perf_counter()
        message = self._received()
        assert isinstance(message, Served | Ended)
        self._harvest_seconds = message.harvest_seconds
        self._last_batch = time.perf_counter()
        self._trainer_seconds += self._last_batch - began
        if isinstance(message, Ended):
            self._position, self._is_ended = message.state, True
            self.close()
            raise StopIteration
        batch = producer.batch(message)
        self._sources = message.sources or self._sources
        self._position = message.state
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Position after the last batch given out, as the batches of `make` would state it."""
        if self._position is None:
            self._opened()
        return copy.deepcopy(self._position) or {}

    @typed
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken, here or from the batches of `make` themselves.

        Args:
            state: The position. What was made ahead is dropped.
        """
        if self._is_running:
            self.close()
        self._is_ended = False
        self._opened(is_to_load=False)
        self._position = self._asked(Request("load", state)).state

    def close(self) -> None:
        """End the thread or process and free what it held; it happens by itself at the end of the batches.

        The position stays: a next loop starts a new thread or process and goes on there.
        """
        producer, self._producer, self._is_running = self._producer, None, False
        if self._finalizer is not None:
            self._finalizer.detach()
            self._finalizer = None
        if producer is not None:
            producer.close()
            self._harvest_seconds_before += self._harvest_seconds
            self._harvest_seconds = 0.0

    def __enter__(self) -> "PrefetchedBatches":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _opened(self, *, is_to_load: bool = True) -> Producer:
        """The producer, started if there is none, where the last batch was given out."""
        if self._producer is None:
            kind = ThreadProducer if self._where == "thread" else ProcessProducer
            self._producer = kind(self._make, n_batches=self._n_batches, device=self._device)
            self._finalizer = weakref.finalize(self, self._producer.close)
            opened = self._received()
            assert isinstance(opened, Opened)
            self._n_tokens = opened.n_tokens
            if self._position is None:
                self._position = opened.state
            elif is_to_load:
                self._asked(Request("load", self._position))
        assert self._producer is not None
        return self._producer

    def _run(self) -> Producer:
        producer = self._opened()
        if not self._is_running:
            producer.ask(Request("run"))
            self._is_running = True
            if not self._first_request:
                self._first_request = self._last_batch = time.perf_counter()
        return producer

    def _asked(self, request: Request) -> Answer:
        self._opened(is_to_load=request.kind != "load").ask(request)
        answer = self._received()
        assert isinstance(answer, Answer)
        return answer

    def _received(self) -> Message:
        """The next message; an error, the producer's or one on the way, ends the producer."""
        assert self._producer is not None
        try:
            message = self._producer.receive()
            if not isinstance(message, Failed):
                return message
            if message.where is not None:
                message.error.add_note(f"It was raised where the batches are made:\n{message.where}")
            raise message.error
        except BaseException:  # an interrupt may have come in the middle of a message
            self.close()
            raise
