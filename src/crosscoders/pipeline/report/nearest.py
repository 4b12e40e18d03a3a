"""The latents whose decoder rows point the same way."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.sources import scale_vector


@torch.no_grad()
@typed
def nearest_latents(
    crosscoder: Crosscoder, *, n: int, max_bytes: int
) -> tuple[Int[Tensor, "latent _rank"], Float[Tensor, "latent _rank"]]:
    """For each latent the others with the largest cosine of whole decoder rows in normalized space.

    Args:
        crosscoder: The crosscoder.
        n: Latents wanted; fewer where there are not so many others.
        max_bytes: Size of the largest temporary tensor, a block of rows of the cosine matrix.

    Returns:
        The latents, nearest first, and the cosines, on the CPU. A latent whose row is zero has no cosine with
        any: where one is missing it is NaN, with latent 0 as a filler.
    """
    units = _units(crosscoder)
    n_latents, n = len(units), min(n, len(units) - 1)
    is_zero = units.isnan().any(dim=1)
    units = torch.where(is_zero[:, None], 0.0, units)
    indices, cosines = [], []
    at_once = min(n_latents, max(1, max_bytes // (4 * n_latents)))
    buffer = units.new_empty(at_once, n_latents)  # fresh memory for each block costs a fifth of the time
    for block in torch.arange(n_latents).split(at_once):
        cosine = torch.mm(units[block], units.T, out=buffer[: len(block)])
        cosine[:, is_zero] = -torch.inf
        cosine[torch.arange(len(block)), block] = -torch.inf
        best, at = cosine.topk(n, dim=1)
        is_missing = best.isneginf() | is_zero[block, None]
        indices.append(at.masked_fill(is_missing, 0).cpu())
        cosines.append(best.masked_fill(is_missing, torch.nan).cpu())
    return torch.cat(indices), torch.cat(cosines)


def _units(crosscoder: Crosscoder) -> Tensor:
    """Decoder rows in normalized space at length 1; NaN for rows of zero norm."""
    rows = crosscoder.W_dec.detach().float()
    if crosscoder.config.is_folded:
        rows = rows * scale_vector(crosscoder.sources, device=rows.device)
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
