"""What runs in the harvest process."""

import contextlib
import os
import pickle
import queue
import signal
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
from torch import Tensor

from crosscoders.prefetch.messages import Message, Request, Slot
from crosscoders.prefetch.ring import SharedMemory
from crosscoders.prefetch.serve import serve

# The consumer decides when the harvest ends: these reach the whole group of processes, and the consumer
# still has to save.
LEFT_TO_CONSUMER = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STOP, FREE = "stop", "free"
_PAGE = 4096
_GRACE_SECONDS = 1.0  # for what only waits, and for the end of the interpreter
_POLL_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class TorchSettings:
    """Settings of torch on which the last bits of an activation may depend."""

    n_threads: int
    matmul_precision: str
    is_deterministic: bool

    @classmethod
    def here(cls) -> "TorchSettings":
        """Those of this process."""
        return cls(
            n_threads=torch.get_num_threads(),
            matmul_precision=torch.get_float32_matmul_precision(),
            is_deterministic=torch.are_deterministic_algorithms_enabled(),
        )

    def apply(self) -> None:
        """Make them those of this process."""
        torch.set_num_threads(self.n_threads)
        torch.set_float32_matmul_precision(self.matmul_precision)
        torch.use_deterministic_algorithms(self.is_deterministic)


class ChildLink:
    """The harvest process' end of the connection.

    One thread hears the consumer, so that its end is noticed while a window is harvested; another one sends,
    so that a consumer that does not read yet never stops the harvest.

    Args:
        connection: To the consumer.
        memory: Where batches are put.
        consumer: Its process id.
    """

    def __init__(self, connection: Connection, memory: SharedMemory, *, consumer: int) -> None:
        self.waited_seconds = 0.0
        self._connection, self._memory, self._consumer = connection, memory, consumer
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._n_slots = self._slot_bytes = 0
        threading.Thread(target=self._hear, daemon=True).start()
        self._sender = threading.Thread(target=self._send_all, daemon=True)
        self._sender.start()

    def open(self, n_batches: int) -> None:
        """Set how many batches have room; the memory is made when their size is known."""
        self._n_slots = n_batches
        for index in range(n_batches):
            self._free.put(index)

    def next_request(self) -> Request:
        """Wait for the next request."""
        request = self._requests.get()
        if request is None:
            raise SystemExit
        return request

    def send(self, message: Message) -> None:
        """Queue a message."""
        self._outbox.put(message)

    def store(self, rows: Tensor) -> Tensor | Slot:
        """Wait for a free slot and copy the rows into it."""
        if rows.nbytes > self._slot_bytes:
            self._grow(rows.nbytes)
        index = self._next_free()
        slot = Slot(
            index=index,
            offset=index * self._slot_bytes,
            shape=tuple(rows.shape),
            dtype=rows.dtype,
            memory_bytes=self._memory.n_bytes,
        )
        self._memory.view(slot).copy_(rows)
        return slot

    def finish(self) -> None:
        """Wait until every message was sent."""
        self._outbox.put(None)
        self._sender.join()

    def _grow(self, n_bytes: int) -> None:
        """Larger slots, once the consumer has given all of them back."""
        slots = [self._next_free() for _ in range(self._n_slots)]
        self._slot_bytes = max(1, -(-n_bytes // _PAGE)) * _PAGE
        self._memory.grow(self._n_slots * self._slot_bytes)
        for index in slots:
            self._free.put(index)

    def _next_free(self) -> int:
        began = time.perf_counter()
        index = self._free.get()
        self.waited_seconds += time.perf_counter() - began
        if index is None:
            raise SystemExit
        return index

    def _send_all(self) -> None:
        with contextlib.suppress(OSError):  # the consumer is gone, as `_hear` finds out too
            while (message := self._outbox.get()) is not None:
                self._connection.send(message)

    def _hear(self) -> None:
        """Take in what the consumer says; end this process when it says so or is gone.

        Whatever the harvest writes to disk must stand being killed anyway, so it is not asked to unwind.
        """
        with contextlib.suppress(EOFError, OSError):
            while self._hear_one():
                pass
        self._requests.put(None)
        self._free.put(None)
        time.sleep(_GRACE_SECONDS)
        os._exit(0)

    def _hear_one(self) -> bool:
        if not self._connection.poll(_POLL_SECONDS):
            # The connection alone would not tell if a fork of the consumer still held its end.
            return os.getppid() == self._consumer
        what = self._connection.recv()
        if isinstance(what, Request):
            self._requests.put(what)
        elif what != STOP:
            self._free.put(what)
        return what != STOP


def run_child(
    connection: Connection,
    memory: SharedMemory,
    *,
    make: bytes,
    n_batches: int | None,
    settings: TorchSettings,
    consumer: int,
) -> None:
    """Make and serve batches until they end, the consumer stops, or it is gone.

    Args:
        connection: To the consumer.
        memory: Shared with it.
        make: The pickled factory.
        n_batches: Room; None for a window.
        settings: What torch is set to there.
        consumer: Its process id.
    """
    for number in LEFT_TO_CONSUMER:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_CONSUMER)
    settings.apply()
    link = ChildLink(connection, memory, consumer=consumer)
    serve(lambda: pickle.loads(make)(), link, n_batches=n_batches, must_pickle=True)
    link.finish()
