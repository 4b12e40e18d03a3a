"""Whether a folder's disk has room."""

import errno
import shutil
from pathlib import Path


def check_space(folder: Path, *, needed: int, what: str) -> None:
    """Raise OSError, with numbers, unless that many bytes are free.

    Args:
        folder: Where they would go; it exists.
        needed: Bytes.
        what: What needs them.

    Raises:
        OSError: Too few are free (`errno.ENOSPC`).
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{folder}: {what} needs {needed} bytes, but only {free} are free; {needed - free} bytes short. "
            "Free some, choose a folder on another disk, or store bfloat16 rows of fewer tokens",
        )
