"""Preemption: SIGTERM ends a run at once where nothing is lost by it, and after the step elsewhere.

The state is one per process, as signal handlers are. Without a `Preemption` at work every function here does
nothing.
"""

import atexit
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn, final

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later


@final
class Preempted(SystemExit):
    """The run was asked to end and can be resumed; uncaught, the process ends with `exit_code`.

    Not an `Exception`, so that code which survives errors of its own does not take it for one.

    Args:
        exit_code: Exit status for the scheduler that is to start the run again.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code
        self.checkpoints: tuple[Path, ...] = ()

    def __str__(self) -> str:
        """What happened, and what was saved."""
        saved = ", ".join(map(str, self.checkpoints))
        return f"stopped by SIGTERM; saved {saved}." if saved else "stopped by SIGTERM."


@final
class Preemption:
    """While its block runs, SIGTERM raises `Preempted` instead of killing the process.

    Training under it finishes its step and writes a checkpoint first, if the trainer has a `checkpoint_dir`;
    whatever else runs is left at once, wherever it is, as Ctrl-C would leave it. The library installs no
    handler by itself: the command line does, and a script of yours does it with this block. Without it,
    SIGTERM kills as ever. A signal that comes too late to be heeded, while the last weights are being saved,
    lets the block end as usual.

    Args:
        exit_code: Exit status of `Preempted`, by which a job's script knows that it is to be queued again.

    Raises:
        ValueError: An exit code that is none, or 0, which says that all is done.

    Example:
        >>> from crosscoders.training import Preemption
        >>> with Preemption() as preemption:
        ...     preemption.is_requested  # trainer.fit(buffer) goes here
        False
    """

    def __init__(self, *, exit_code: int = EXIT_CODE) -> None:
        if not 1 <= exit_code <= 255:
            raise ValueError(f"Preemption: exit_code must be between 1 and 255, got {exit_code}.")
        self.exit_code = exit_code
        self.is_requested = False
        self._is_interruptible = True
        self._process = os.getpid()

    def __enter__(self) -> "Preemption":
        """Install the handler.

        Raises:
            RuntimeError: One is at work already, or this is not the main thread, which alone gets signals.
        """
        global _at_work
        if _at_work is not None:
            raise RuntimeError("Preemption: one is at work already in this process; leave this one out.")
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "Preemption: signals reach the main thread only; open the block there, around the call that "
                "starts this thread."
            )
        self._process = os.getpid()
        self._before = signal.signal(signal.SIGTERM, self._on_signal)
        _at_work = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put back the handler that was there; a process that ends preempted heeds no second SIGTERM.

        Nor does one whose program has come to its end: the interpreter may take seconds to go, and a kill
        would make a failure of what is done.
        """
        global _at_work
        _at_work = None
        signal.signal(signal.SIGTERM, signal.SIG_IGN if isinstance(error, Preempted) else self._before)
        atexit.unregister(_end_in_peace)
        atexit.register(_end_in_peace)

    def request(self) -> None:
        """Do what SIGTERM does.

        Raises:
            Preempted: The code that runs can be left at once.
        """
        if self.is_requested:
            return  # what is being saved or cleaned up must not be left halfway
        self.is_requested = True
        if self._is_interruptible:
            raise Preempted(self.exit_code)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._process:
            self.request()
        else:  # a child that was forked: nobody told it to save anything
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


_at_work: Preemption | None = None


def _end_in_peace() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def is_at_work() -> bool:
    """Whether a `Preemption` is open in this process."""
    return _at_work is not None


def is_preempted() -> bool:
    """Whether the run has been asked to end."""
    return _at_work is not None and _at_work.is_requested


def check_preempted() -> None:
    """End here if the run has been asked to end; for code that can be left between two pieces of work.

    Raises:
        Preempted: It has been asked to.
    """
    if is_preempted():
        end_preempted()


def end_preempted() -> NoReturn:
    """End here: this process, or another rank of the run, has been asked to.

    Raises:
        Preempted: Always.
    """
    raise Preempted(EXIT_CODE if _at_work is None else _at_work.exit_code)


@contextmanager
def interruptible(*, is_alone: bool = True) -> Iterator[None]:
    """A block that a preemption leaves at once: loading, harvesting, measuring.

    Args:
        is_alone: False where other ranks would wait in vain for one that leaves; then the block is like any.

    Raises:
        Preempted: The run has been asked to end, before or during the block.
    """
    if not is_alone:
        yield
        return
    with _set(is_interruptible=True):
        check_preempted()
        yield


@contextmanager
def uninterruptible() -> Iterator[None]:
    """A block that a preemption does not leave, but for `interruptible` blocks within: steps and saving."""
    with _set(is_interruptible=False):
        yield


@contextmanager
def _set(*, is_interruptible: bool) -> Iterator[None]:
    preemption = _at_work
    if preemption is None:
        yield
        return
    before = preemption._is_interruptible
    preemption._is_interruptible = is_interruptible
    try:
        yield
    finally:
        preemption._is_interruptible = before
