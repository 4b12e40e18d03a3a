"""A thread that does one piece of work after the other, so that who asks for it never waits."""

import queue
import threading
from collections.abc import Callable
from typing import final

_PIECES_WAITING = 1000  # logging steps that a backend may fall behind before it counts as failed


@final
class Worker:
    """One daemon thread with a queue; the work itself must not raise.

    Args:
        name: Name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(maxsize=_PIECES_WAITING)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], None] | None) -> bool:
        """Queue a piece of work, None for the end; False if the queue is full."""
        try:
            self._queue.put_nowait(work)
        except queue.Full:
            return False
        return True

    def close(self, *, timeout_seconds: float) -> bool:
        """Wait for what is queued, but not longer than this; gives whether all of it was done."""
        if self.submit(None):
            self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
