"""Encoding with a gradient that stays sparse where only selected entries receive one.

`Encode` makes the pre-activations; `GatherEntries` takes a few of them and sends back a sparse gradient, from
which `Encode` forms the gradients of the weights by gathers instead of a dense product. Autograd adds sparse
and dense gradients, so a term that reads all pre-activations makes the sum dense, and the dense product runs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from crosscoders.kernels.product import linear


class Encode(torch.autograd.Function):
    """`x W_enc^T + b_enc` in the dtype of `W_enc`; the product is in bfloat16 under autocast."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
        """Keep the inputs for the backward pass."""
        ctx.save_for_backward(x, W_enc)
        product = encode_product(x, W_enc, b_enc)
        ctx.product_dtype = product.dtype
        return product.to(W_enc.dtype)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of `x`, `W_enc` and `b_enc`, from a sparse or a dense gradient."""
        (grad,) = grad_outputs
        x, W_enc = ctx.saved_tensors
        if grad.is_sparse:
            return _sparse_backward(ctx.needs_input_grad, grad, x=x, W_enc=W_enc)
        low, wants = grad.to(ctx.product_dtype), ctx.needs_input_grad
        grad_x = (low @ W_enc.to(low.dtype)).to(x.dtype) if wants[0] else None
        grad_W = (low.T @ x.to(low.dtype)).to(W_enc.dtype) if wants[1] else None
        return grad_x, grad_W, grad.sum(dim=0) if wants[2] else None


class GatherEntries(torch.autograd.Function):
    """Entries of a matrix at ascending flat indices; the gradient is sparse if `Encode` will receive it."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, flat: Tensor) -> Tensor:
        """Remember where the entries come from."""
        ctx.save_for_backward(flat)
        ctx.shape = matrix.shape
        ctx.is_sparse = isinstance(matrix.grad_fn, Encode._backward_cls)  # type: ignore[attr-defined]
        return matrix.reshape(-1).index_select(0, flat)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, None]:
        """Put the gradients where the entries were."""
        (grad,), (flat,) = grad_outputs, ctx.saved_tensors
        n_rows, n_columns = ctx.shape
        if not ctx.is_sparse:
            return grad.new_zeros(n_rows * n_columns).index_copy(0, flat, grad).view(ctx.shape), None
        places = torch.stack([flat // n_columns, flat % n_columns])
        sparse = torch.sparse_coo_tensor(places, grad, ctx.shape, is_coalesced=True, check_invariants=False)
        return sparse, None


def encode_product(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
    """`x W_enc^T + b_enc` without gradient, in bfloat16 under autocast."""
    if torch.is_autocast_enabled(x.device.type) or torch.compiler.is_compiling():
        return F.linear(x, W_enc, b_enc)
    return linear(x, W_enc, b_enc)


def _sparse_backward(
    wants: tuple[bool, ...], grad: Tensor, *, x: Tensor, W_enc: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    grad = grad.coalesce()
    (rows, latents), values = grad.indices(), grad.values()
    grad_x = _sum_rows(latents, W_enc, weights=values, by=rows, n_sums=len(x)) if wants[0] else None
    by_latent, order = torch.sort(latents, stable=True)
    grad_W = None
    if wants[1]:
        grad_W = _sum_rows(rows[order], x, weights=values[order], by=by_latent, n_sums=len(W_enc))
    grad_b = values.new_zeros(len(W_enc)).index_add_(0, by_latent, values[order]) if wants[2] else None
    return grad_x, grad_W, grad_b


def _sum_rows(indices: Tensor, matrix: Tensor, *, weights: Tensor, by: Tensor, n_sums: int) -> Tensor:
    """Sum weighted rows of a matrix into those that the sorted `by` names."""
    offsets = torch.searchsorted(by, torch.arange(n_sums + 1, device=by.device))
    return F.embedding_bag(
        indices, matrix, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )
