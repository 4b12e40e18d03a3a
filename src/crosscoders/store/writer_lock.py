"""One writer per store: a lock that the system takes back when the process ends, however it ends."""

import errno
import os
import sys
import weakref
from pathlib import Path

if sys.platform != "win32":  # where a folder cannot be made durable either (`_io`)
    import fcntl

_LOCK_NAME = "writer.lock"


class WriterLock:
    """Held from construction until `release`, or until it is collected.

    Args:
        folder: Folder of the store.

    Raises:
        BlockingIOError: Another writer holds it.
    """

    def __init__(self, folder: Path) -> None:
        descriptor = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
        self._close = weakref.finalize(self, os.close, descriptor)
        try:
            if sys.platform != "win32":
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            self._close()
            raise BlockingIOError(
                errno.EWOULDBLOCK,
                f"{folder}: another process is writing to this store; wait until it is done, or give this "
                "run a folder of its own",
            ) from err

    def release(self) -> None:
        """Let the next writer in."""
        self._close()
