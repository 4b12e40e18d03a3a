"""Ranks of a run on several processes: who they are, sums over them, and selections across them."""

from crosscoders.parallel.failure import one_clear_message
from crosscoders.parallel.launch import from_torchrun, is_main, leave, n_ranks
from crosscoders.parallel.ranks import ALONE, Axis, Ranks, ranks_of
from crosscoders.parallel.selection import batch_topk_across, row_topk_across

__all__ = [
    "ALONE",
    "Axis",
    "Ranks",
    "batch_topk_across",
    "from_torchrun",
    "is_main",
    "leave",
    "n_ranks",
    "one_clear_message",
    "ranks_of",
    "row_topk_across",
]
