"""Peak memory of this process: the kernel's high-water mark of resident memory, or CUDA's allocator.

VmHWM never falls by itself. Writing 5 to clear_refs sets it to the present resident size; where that is not
permitted a process must not have had a higher peak before, which fresh workers have not.
"""

import contextlib
import re
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def reset_peak(device: str) -> int:
    """Start a new measurement and give back the bytes in use now.

    Raises:
        RuntimeError: The mark could not be reset and is above the present size.
    """
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError):
        _CLEAR_REFS.write_text("5")
    resident, mark = _status_bytes("VmRSS"), _status_bytes("VmHWM")
    if mark > 1.02 * resident:
        raise RuntimeError(
            f"memory: the high-water mark ({mark} bytes) cannot be reset and is above the resident size "
            f"({resident} bytes); a peak below it would not be seen."
        )
    return mark


def peak(device: str) -> int:
    """Bytes in use at the highest point since `reset_peak`."""
    return torch.cuda.max_memory_allocated() if device != "cpu" else _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), re.M)
    assert found is not None
    return int(found[1]) * 1024
