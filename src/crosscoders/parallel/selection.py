"""Top-k over ranks: the entries that one process would select from the whole matrix of scores, ties included.

Each rank has a block of the matrix: its rows of the batch, its columns of the latents. No score that is NaN,
zero or negative is taken; ties go to the lowest flat index of the whole matrix, as in `kernels.reference`.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.parallel.ranks import Axis, Ranks

_BITS_PER_ROUND = 16


@typed
def row_topk_across(scores: Float[Tensor, "batch latent"], k: int, *, axis: Axis) -> Int[Tensor, " nnz"]:
    """Entries of this rank among the `k` largest positive scores of each row over all latents.

    Each rank sends the `k` largest scores of its rows. What it leaves out is not larger than what it sends
    and stands behind it, so the k-th largest of all is among what was sent, and so are its ties that count.
    One gathering of `k` numbers per row and rank.

    Args:
        scores: Scores of this rank's latents.
        k: Entries to keep in a row.
        axis: The latent axis.

    Returns:
        Ascending flat indices into `scores`.
    """
    scores = scores.detach()
    scores = torch.where(scores > 0, scores, 0.0)  # NaN is not above 0 either
    own = scores.topk(min(k, scores.shape[1]), dim=1).values
    received = axis.gather(F.pad(own, (0, k - own.shape[1])))
    ranked = received.movedim(0, 1).flatten(1)
    floor = ranked.topk(k, dim=1).values[:, -1:]
    n_above = (ranked > floor).sum(dim=1)
    n_before = (received[: axis.rank] == floor).sum(dim=(0, 2))
    ties = (scores == floor) & (floor > 0)
    return _flat((scores > floor) | _first_of_rows(ties, k - n_above - n_before))


@typed
def batch_topk_across(
    scores: Float[Tensor, "batch latent"], k: int, *, ranks: Ranks
) -> tuple[Int[Tensor, " nnz"], Float[Tensor, ""]]:
    """Entries of this rank among the `k * batch` largest positive scores of the whole batch.

    The bits of positive floats are ordered as the floats are. So the smallest score to keep is found 16 bits
    at a time, from histograms that are summed over the ranks: two sums for float32, four for float64.

    Args:
        scores: Scores of this rank's rows and latents.
        k: Mean number of entries to keep per row.
        ranks: Both axes.

    Returns:
        Ascending flat indices into `scores`, and the smallest score that any rank keeps: infinite if none.
    """
    dtype, scores = scores.dtype, scores.detach()
    scores = scores if dtype == torch.float64 else scores.float()  # exact for narrower floats
    floor, n_wanted, n_tied = _smallest_kept(scores, k, ranks=ranks)
    if n_tied == 0:
        kept = scores > 0
        least = scores.masked_fill(~kept, torch.inf).flatten()
        return _flat(kept), ranks.min(least.min() if least.numel() else least.new_tensor(torch.inf)).to(dtype)
    if n_wanted == n_tied:
        return _flat(scores >= floor), floor.to(dtype)
    ties = scores == floor
    n_before = _ties_before_rows(ties.sum(dim=1), ranks=ranks)
    kept = (scores > floor) | _first_of_rows(ties, n_wanted - n_before)
    return _flat(kept), floor.to(dtype)


def _smallest_kept(scores: Tensor, k: int, *, ranks: Ranks) -> tuple[Tensor, int, int]:
    """The score at place `k * batch` of all, how many entries equal to it to keep, and how many there are.

    Zeros if no more scores than that are positive.
    """
    wide, n_bits = (torch.int64, 64) if scores.dtype == torch.float64 else (torch.int32, 32)
    bits, prefix, n_left, n_tied = scores[scores > 0].view(wide), 0, -1, 0
    for shift in range(n_bits - _BITS_PER_ROUND, -1, -_BITS_PER_ROUND):
        n_bins = 1 << (_BITS_PER_ROUND - (n_left < 0))  # the first bit is the sign, which all have
        counts = torch.bincount((bits >> shift) & (n_bins - 1), minlength=n_bins + 1)
        if ranks.latents.rank == 0:
            counts[-1] = scores.shape[0]  # the sum of this one is the batch
        counts, n_rows = ranks.sum(counts).cpu().split([n_bins, 1])  # waited for once
        at_least = counts.flip(0).cumsum(0).flip(0)
        if n_left < 0:
            n_left = k * int(n_rows)
            if int(at_least[0]) <= n_left:
                return scores.new_zeros(()), 0, 0
        chosen = int((at_least >= n_left).sum()) - 1
        n_tied = int(counts[chosen])
        n_left -= int(at_least[chosen]) - n_tied
        prefix = (prefix << _BITS_PER_ROUND) | chosen
        bits = bits[(bits >> shift) == prefix]
    floor = torch.tensor(prefix, dtype=wide, device=scores.device).view(scores.dtype)
    return floor, n_left, n_tied


def _ties_before_rows(n_ties: Tensor, *, ranks: Ranks) -> Tensor:
    """For each row how many ties stand before this rank's block of it in the whole matrix."""
    in_row = ranks.latents.gather(n_ties)
    row_total = in_row.sum(dim=0)
    before_row = row_total.cumsum(0) - row_total
    before_rank = ranks.data.gather(row_total.sum())[: ranks.data.rank].sum()
    return before_rank + before_row + in_row[: ranks.latents.rank].sum(dim=0)


def _first_of_rows(mask: Tensor, n: Tensor) -> Tensor:
    """The first n marks of each row; none where n is not positive."""
    surplus = (mask.sum(dim=1) > n).nonzero().squeeze(1)
    if surplus.numel() == 0:
        return mask
    rows = mask[surplus]
    return mask.index_copy(0, surplus, rows & (rows.cumsum(dim=1) <= n[surplus, None]))


def _flat(mask: Tensor) -> Tensor:
    return mask.flatten().nonzero().squeeze(1)
