"""Numbers of bytes as people write and read them."""

import math
import re

from crosscoders._typing import typed

_UNITS = {"B": 1} | {
    f"{letter}{kind}": base**power
    for power, letter in enumerate("kMGT", start=1)
    for kind, base in (("B", 1000), ("iB", 1024))
}


@typed
def parse_bytes(text: str) -> int:
    """Bytes from a size such as "80GB" (80 * 10^9) or "80GiB" (80 * 2^30).

    Args:
        text: A positive number and one of B, kB, MB, GB, TB, kiB, MiB, GiB, TiB; case does not matter.

    Raises:
        ValueError: Anything else.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]+)\s*", text)
    units = {name.lower(): factor for name, factor in _UNITS.items()}
    if match is None or match[2].lower() not in units or not 0 < float(match[1]) < math.inf:
        raise ValueError(f"size must be a number with a unit such as 80GB or 80GiB, got {text!r}.")
    return round(float(match[1]) * units[match[2].lower()])


@typed
def shown_bytes(n_bytes: int) -> str:
    """A size for people, in units of 1000.

    Args:
        n_bytes: Any number of bytes, negative ones too.
    """
    for unit in ("TB", "GB", "MB", "kB"):
        if abs(n_bytes) >= _UNITS[unit]:
            return f"{n_bytes / _UNITS[unit]:.2f} {unit}"
    return f"{n_bytes} B"
