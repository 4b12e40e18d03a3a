"""What every kernel computes, written for reading; faster backends must agree with it.

A selection never takes a score that is NaN, zero or negative; ties go to the lowest flat index.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.kernels.adam import AdamMatrix, AdamStep
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
    ranked = scores.masked_fill(scores.isnan(), -torch.inf)
    order = ranked.argsort(dim=1, descending=True, stable=True)[:, :k]
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


@typed
def decode_residual(
    latents: SparseLatents,
    W_dec: Float[Tensor, "latent width"],
    *,
    b_dec: Float[Tensor, " width"],
    x: Float[Tensor, "batch width"],
) -> tuple[Float[Tensor, "batch width"], Float[Tensor, ""]]:
    """Reconstruction minus target, and the sum of its squares.

    Args:
        latents: Sparse latents.
        W_dec: Decoder rows.
        b_dec: Decoder bias.
        x: Target.

    Returns:
        The residual and one number.
    """
    residual = decode_dense(latents.to_dense(), W_dec) + b_dec - x
    return residual, residual.square().sum()


@typed
def decoder_backward(
    grad: Float[Tensor, "batch width"], latents: SparseLatents, *, W_dec: Float[Tensor, "latent width"]
) -> tuple[Float[Tensor, " nnz"], Float[Tensor, "latent width"]]:
    """Gradients of decoding with respect to the stored values and to the decoder rows.

    Args:
        grad: Gradient with respect to the decoded rows.
        latents: Sparse latents.
        W_dec: Decoder rows.

    Returns:
        `<grad[row], W_dec[latent]>` for each stored entry, and `latents^T grad`.
    """
    grad_latents = grad @ W_dec.T
    return grad_latents[latents.rows(), latents.indices], latents.to_dense().T @ grad


@typed
def encoder_backward(
    grad_values: Float[Tensor, " nnz"], x: Float[Tensor, "batch width"], *, latents: SparseLatents
) -> tuple[Float[Tensor, "latent width"], Float[Tensor, " latent"]]:
    """Gradients of `x W_enc^T + b_enc` where only the stored entries received one.

    Args:
        grad_values: Gradient with respect to the stored pre-activations.
        x: What was encoded.
        latents: The sparse latents; only their positions are read.

    Returns:
        Gradients of the encoder rows and of the bias.
    """
    grad = SparseLatents(grad_values, latents.indices, latents.row_ptr, latents.n_latents).to_dense()
    return grad.T @ x, grad.sum(dim=0)


@typed
def adam_rows_(matrix: AdamMatrix, grad: Float[Tensor, "latent width"], *, step: AdamStep) -> None:
    """Update a weight matrix and all that is derived from it, in place; see `AdamStep` for the formula.

    Args:
        matrix: The weights and their moments.
        grad: Gradient, before `step.grad_scale`.
        step: Numbers of the update.
    """
    if step.skip is not None and bool(step.skip):
        return
    scaled = grad if step.grad_scale is None else grad * step.grad_scale
    matrix.exp_avg.lerp_(scaled, 1 - step.beta1)
    matrix.exp_avg_sq.mul_(step.beta2).addcmul_(scaled, scaled, value=1 - step.beta2)
    root = matrix.exp_avg_sq.sqrt() / (1 - step.beta2**step.n) ** 0.5
    matrix.weight.sub_(step.lr / (1 - step.beta1**step.n) * matrix.exp_avg / (root + step.eps))
    if matrix.shadow is not None:
        matrix.shadow.copy_(matrix.weight)
    matrix.derive_norms_()
