"""Which members of a sweep no other beats."""

import math
from collections.abc import Sequence

from crosscoders._typing import typed


@typed
def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> list[bool]:
    """Whether each point is on the Pareto front: none costs no more and gains no less, one of both strictly.

    Equal points are on it together. A point with NaN is not, and beats nothing.

    Args:
        costs: Such as L0; less is better.
        gains: Such as explained variance; more is better.

    Returns:
        One answer per point.

    Raises:
        ValueError: Not as many costs as gains.
    """
    if len(costs) != len(gains):
        raise ValueError(f"pareto_front: {len(costs)} costs for {len(gains)} gains; give one of each.")
    is_on = [False] * len(costs)
    known = [at for at in range(len(costs)) if not (math.isnan(costs[at]) or math.isnan(gains[at]))]
    best: tuple[float, float] | None = None  # the last point on the front: its cost and its gain
    for at in sorted(known, key=lambda at: (costs[at], -gains[at])):
        if best is None or gains[at] > best[1] or (costs[at], gains[at]) == best:
            is_on[at], best = True, (costs[at], gains[at])
    return is_on
