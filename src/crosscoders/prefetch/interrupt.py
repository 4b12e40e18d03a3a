"""Ending the work of a thread from another one, at its next Python instruction."""

import ctypes
import threading


class Interruptible:
    """Work of the thread that enters this block, which another thread may end with SystemExit.

    A window may take minutes to harvest, and a run that is told to end has seconds. SystemExit ends a thread
    without a word, and the `finally` blocks on its way put things back (hooks, offloaded weights, files). A
    thread that waits in C code sees it when that returns. After the block nothing is raised any more.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread_id: int | None = None

    def __enter__(self) -> "Interruptible":
        self._thread_id = threading.get_ident()
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._thread_id = None

    def interrupt(self) -> None:
        """Raise SystemExit in the block, if a thread is in it."""
        with self._lock:
            if self._thread_id is not None:
                ident, error = ctypes.c_ulong(self._thread_id), ctypes.py_object(SystemExit)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, error)
