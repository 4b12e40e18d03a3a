"""What every kernel computes, written for reading; faster backends must agree with it.

A selection never takes a score that is zero or negative, and breaks ties in favor of the lowest flat index.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.kernels.sparse_latents import SparseLatents


@typed
def row_topk_mask(scores: Float[Tensor, "batch latent"], k: int) -> Bool[Tensor, "batch latent"]:
    """Mark the `k` largest positive scores of each row.

    Args:
        scores: Scores to rank.
        k: Entries to keep in a row; fewer are kept where fewer are positive.

    Returns:
        True where an entry is kept.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, order, True) & (scores > 0)


@typed
def batch_topk_mask(scores: Float[Tensor, "batch latent"], k: int) -> Bool[Tensor, "batch latent"]:
    """Mark the `k * batch` largest positive scores of the whole batch.

    BatchTopK, Bussmann et al. 2412.06410.

    Args:
        scores: Scores to rank.
        k: Mean number of entries to keep per row.

    Returns:
        True where an entry is kept: exactly `min(k * batch, number of positive scores)` entries.
    """
    return row_topk_mask(scores.reshape(1, -1), k * scores.shape[0]).view_as(scores)


@typed
def threshold_mask(
    scores: Float[Tensor, "batch latent"], threshold: Float[Tensor, ""] | Float[Tensor, " latent"]
) -> Bool[Tensor, "batch latent"]:
    """Mark the positive scores above a threshold.

    Args:
        scores: Scores to compare.
        threshold: One threshold, or one per latent.

    Returns:
        True where an entry is kept.
    """
    return (scores > threshold) & (scores > 0)


@typed
def decode_dense(
    latents: Float[Tensor, "batch latent"], W_dec: Float[Tensor, "latent width"]
) -> Float[Tensor, "batch width"]:
    """Sum of decoder rows weighted by dense latents, without bias.

    Args:
        latents: Dense latents.
        W_dec: Decoder rows.

    Returns:
        `latents @ W_dec`.
    """
    return latents @ W_dec


@typed
def decode_sparse(
    latents: SparseLatents, W_dec: Float[Tensor, "latent width"]
) -> Float[Tensor, "batch width"]:
    """Sum of decoder rows weighted by sparse latents, without bias; equals `decode_dense` of the dense form.

    Args:
        latents: Sparse latents.
        W_dec: Decoder rows.

    Returns:
        One row per token; gradients reach the stored values and the decoder rows in use.
    """
    return F.embedding_bag(
        latents.indices,
        W_dec,
        latents.row_ptr,
        mode="sum",
        per_sample_weights=latents.values,
        include_last_offset=True,
    )
