"""A producer in a thread of this process."""

import atexit
import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from crosscoders.prefetch.handout import Handout
from crosscoders.prefetch.interrupt import Interruptible
from crosscoders.prefetch.messages import Message, Request, Served, Slot
from crosscoders.prefetch.serve import serve

_PAUSE_SECONDS = 0.05  # enough for a thread that only waits
_GRACE_SECONDS = 2.0  # for hooks and offloaded weights to be put back


class ThreadLink:
    """What the thread and the consumer share.

    Args:
        pin: Keep rows in pinned memory, for copies by a GPU.
    """

    def __init__(self, *, pin: bool) -> None:
        self.waited_seconds = 0.0
        self.requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.room = threading.Semaphore(0)
        self.is_stopped = False
        self._pin = pin
        self.work = Interruptible()

    def open(self, n_batches: int) -> None:
        """Make room for that many batches."""
        self.room.release(n_batches)

    def next_request(self) -> Request:
        """Wait for the next request."""
        request = self.requests.get()
        if request is None:
            raise SystemExit
        return request

    def send(self, message: Message) -> None:
        """Queue a message."""
        self.messages.put(message)

    def store(self, rows: Tensor) -> Tensor | Slot:
        """Wait for room; the rows stay where they are, or move to pinned memory."""
        began = time.perf_counter()
        self.room.acquire()
        self.waited_seconds += time.perf_counter() - began
        if self.is_stopped:
            raise SystemExit
        return rows.pin_memory() if self._pin and rows.device.type == "cpu" else rows

    def run(self, make: Callable[[], Any], *, n_batches: int | None) -> None:
        """What the thread does, from beginning to end."""
        with contextlib.suppress(SystemExit), self.work:
            serve(make, self, n_batches=n_batches, must_pickle=False)

    def stop(self) -> None:
        """Wake the thread wherever it waits."""
        self.is_stopped = True
        self.requests.put(None)
        self.room.release()


class ThreadProducer:
    """Starts the thread, and is the consumer's end of it.

    Args:
        make: Builds the batches, in the thread.
        n_batches: Room; None for a window.
        device: Where batches are given out.
    """

    def __init__(self, make: Callable[[], Any], *, n_batches: int | None, device: torch.device) -> None:
        self._owner = os.getpid()
        self._handout = Handout(device)
        self._link = ThreadLink(pin=device.type == "cuda")
        self._thread = threading.Thread(
            target=self._link.run,
            args=(make,),
            kwargs={"n_batches": n_batches},
            name="crosscoders-harvest",
            daemon=True,
        )
        self._thread.start()
        # A thread that still computes while the interpreter is taken down can crash it.
        atexit.register(self.close)

    def ask(self, request: Request) -> None:
        """Send a request."""
        self._link.requests.put(request)

    def receive(self) -> Message:
        """Wait for the next message."""
        return self._link.messages.get()

    def batch(self, served: Served) -> Tensor:
        """The batch that a message brought."""
        assert isinstance(served.rows, Tensor)
        self._link.room.release()
        is_ready = self._handout.device == served.rows.device and served.rows.dtype == served.dtype
        return served.rows if is_ready else self._handout.batch(served.rows, served.dtype)[0]

    def close(self) -> None:
        """End the thread, at its next Python instruction if it is at work."""
        atexit.unregister(self.close)
        if os.getpid() != self._owner:  # a fork: the thread is the parent's
            return
        self._link.stop()
        if self._thread is not threading.current_thread():
            self._thread.join(_PAUSE_SECONDS)
            for _ in range(2):  # SystemExit is lost if it comes while Python runs the callback of a weakref
                self._link.work.interrupt()
                self._thread.join(_GRACE_SECONDS)
        while not self._link.messages.empty():
            self._link.messages.get()
