"""A producer in a process of its own."""

import atexit
import contextlib
import multiprocessing
import os
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import Any

import torch
from torch import Tensor

from crosscoders.prefetch.child import LEFT_TO_CONSUMER, STOP, TorchSettings, run_child
from crosscoders.prefetch.handout import Handout
from crosscoders.prefetch.messages import Message, Opened, Request, Served, Slot
from crosscoders.prefetch.ring import SharedMemory

_GRACE_SECONDS = 2.0


class ProcessProducer:
    """Starts the process, and is the consumer's end of it.

    Args:
        make: Builds the batches, in the process; pickled by value, so best a function of few arguments.
        n_batches: Room; None for a window.
        device: Where batches are given out.

    Raises:
        ValueError: `make` cannot be pickled.
    """

    def __init__(self, make: Callable[[], Any], *, n_batches: int | None, device: torch.device) -> None:
        self._owner = os.getpid()
        self._n_served, self._has_opened = 0, False
        self._handout = Handout(device)
        self._being_copied: deque[tuple[torch.cuda.Event, int]] = deque()
        self._memory = SharedMemory()
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=run_child,
            args=(theirs, self._memory),
            kwargs={
                "make": _pickled(make),
                "n_batches": n_batches,
                "settings": TorchSettings.here(),
                "consumer": self._owner,
            },
            name="crosscoders-harvest",
        )
        with theirs, _signals_held_back():
            self._process.start()
        # multiprocessing waits for its processes at exit, after what is registered here.
        atexit.register(self.close)

    @property
    def pid(self) -> int | None:
        """The process id."""
        return self._process.pid

    def ask(self, request: Request) -> None:
        """Send a request; that nobody hears it shows when the answer is awaited."""
        self._say(request)

    def receive(self) -> Message:
        """Wait for the next message.

        Raises:
            RuntimeError: The process ended without one.
        """
        self._release(wait_for_all=not self._connection.poll())
        wait([self._connection, self._process.sentinel])
        try:
            message = self._connection.recv()
        except (EOFError, OSError):
            raise RuntimeError(self._last_words()) from None
        self._has_opened |= isinstance(message, Opened)
        return message

    def batch(self, served: Served) -> Tensor:
        """The batch that a message brought; its slot is free once it is copied."""
        slot = served.rows
        assert isinstance(slot, Slot)
        self._memory.map(slot.memory_bytes, pin=self._handout.device.type == "cuda")
        batch, done = self._handout.batch(self._memory.view(slot), served.dtype)
        self._n_served += 1
        if done is None:
            self._say(slot.index)
        else:
            self._being_copied.append((done, slot.index))
        return batch

    def close(self) -> None:
        """End the process, by force if it does not end itself, and free the memory."""
        atexit.unregister(self.close)
        if os.getpid() != self._owner or self._connection.closed:  # a fork: the process is the parent's
            return
        self._say(STOP)
        self._connection.close()
        if self._has_opened:  # until then nobody there hears it, and there is nothing to put back
            self._process.join(_GRACE_SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self._process.close()
        for done, _ in self._being_copied:
            done.synchronize()
        self._being_copied.clear()
        self._memory.close()

    def _say(self, what: Request | int | str) -> None:
        with contextlib.suppress(OSError):
            self._connection.send(what)

    def _release(self, *, wait_for_all: bool) -> None:
        """Give back the slots whose copies are done; all of them where the process may be waiting for one."""
        while self._being_copied and (wait_for_all or self._being_copied[0][0].query()):
            done, index = self._being_copied.popleft()
            done.synchronize()
            self._say(index)

    def _last_words(self) -> str:
        self._process.join(_GRACE_SECONDS)
        code, pid = self._process.exitcode, self._process.pid
        where = f"PrefetchedBatches: the harvest process (pid {pid})"
        if code is None:
            return f"{where} closed its connection after {self._n_served} batches without saying why."
        if code < 0:
            return (
                f"{where} was killed by {signal.Signals(-code).name} after {self._n_served} batches. If "
                "nobody killed it, memory ran out: lower the buffer's max_bytes or n_batches. A run with "
                "checkpoints goes on from the last one."
            )
        advice = (
            ""
            if self._has_opened
            else " A script that starts a process must keep its own work under `if __name__ == '__main__':`."
        )
        return (
            f"{where} ended with exit code {code} after {self._n_served} batches; its own message stands on "
            f"stderr.{advice}"
        )


def _pickled(make: Callable[[], Any]) -> bytes:
    try:
        return pickle.dumps(make)
    except (pickle.PicklingError, AttributeError, TypeError) as err:
        raise ValueError(
            "PrefetchedBatches: where='process' sends make to another process by pickle, and this one cannot "
            f"be pickled ({err}); pass a function of a module, or functools.partial of one."
        ) from err


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """A process started in here begins with these signals blocked, until it has said that it ignores them."""
    resource_tracker.ensure_running()  # starting it would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_CONSUMER)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
