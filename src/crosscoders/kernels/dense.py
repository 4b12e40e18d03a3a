"""The training step on dense matrix products: what wins where many latents fire, on any device.

Selections are the same as everywhere; after them the latents are written out with their zeros, and decoding
and the three backward products are matrix products (bfloat16 with low precision), followed by PyTorch's fused
Adam.
"""

import dataclasses
from typing import final

import torch
from torch import Tensor

from crosscoders.kernels.adam import AdamMatrix, AdamStep
from crosscoders.kernels.ops import select
from crosscoders.kernels.product import linear
from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.kernels.step import (
    Encoded,
    Selection,
    StepKernels,
    StepWeights,
    UpdatePlan,
    adam_vector_,
    library_adam_,
)

# On the CPU, so that memory is reused; see `cpu.step`.
_PRODUCTS_AT_ONCE = 4 << 20


@final
class DenseStep(StepKernels):
    """See `StepKernels`."""

    def __init__(self, weights: StepWeights, *, is_low_precision: bool) -> None:
        super().__init__(with_copies(weights, is_low=is_low_precision), is_low_precision=is_low_precision)
        self._written: Tensor | None = None
        self._places: Tensor | None = None
        self.refresh()

    def refresh(self) -> None:
        """Derive norms and bfloat16 copies from the weights again."""
        for matrix in (self.weights.W_dec, self.weights.W_enc):
            derive_(matrix)

    def encode(self, x: Tensor, selection: Selection) -> Encoded:
        """Encode everything, then select."""
        weight = self.weights.W_enc.factor
        bias = self.weights.b_enc.weight.view(-1).to(weight.dtype)
        pre_acts = linear(x.to(weight.dtype), weight, bias)
        return select(pre_acts, self.selection_scale(), selection=selection)

    def residual(self, latents: SparseLatents, x: Tensor) -> tuple[Tensor, Tensor]:
        """Decode with one matrix product."""
        decoded = linear(self._write_out(latents, latents.values), self.weights.W_dec.factor.T)
        residual = decoded.float() + self.weights.b_dec.weight - x
        return residual, residual.square().sum()

    def update(
        self, grad: Tensor, encoded: Encoded, x: Tensor, *, step: AdamStep, plan: UpdatePlan
    ) -> Tensor:
        """Three matrix products, clipping, fused Adam."""
        latents, weights = encoded.latents, self.weights
        low = weights.W_dec.factor
        low_grad, low_x = grad.to(low.dtype), x.to(low.dtype)
        grad_W_dec = _outer(self._write_out(latents, latents.values), low_grad)
        grad_values = _grad_values(low_grad, latents, W_dec=low)
        grads = {
            "W_dec": grad_W_dec,
            "W_enc": _outer(self._write_out(latents, grad_values), low_x),
            "b_enc": grad.new_zeros(latents.n_latents).index_add_(0, latents.indices, grad_values),
            "b_dec": grad.sum(dim=0),
        }
        if plan.extra is not None:
            plan.extra.add_to(W_dec=grads["W_dec"], W_enc=grads["W_enc"], b_enc=grads["b_enc"])
        norm = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
        step = self.guarded(step, norm, plan=plan)
        for name in ("W_dec", "W_enc"):
            matrix: AdamMatrix = getattr(weights, name)
            library_adam_(matrix.weight, matrix.exp_avg, matrix.exp_avg_sq, grads[name], step=step)
            derive_(matrix)
        adam_vector_(weights.b_enc, grads["b_enc"], step=step)
        adam_vector_(weights.b_dec, grads["b_dec"], step=step)
        return norm

    def _write_out(self, latents: SparseLatents, values: Tensor) -> Tensor:
        """Latents with their zeros, in memory that the next call clears entry by entry and uses again."""
        dtype, n_entries = self.weights.W_dec.factor.dtype, latents.n_rows * latents.n_latents
        if self._written is None or self._places is None or self._written.numel() != n_entries:
            self._written = values.new_zeros(n_entries, dtype=dtype)
        else:
            self._written.index_fill_(0, self._places, 0.0)
        self._places = latents.rows() * latents.n_latents + latents.indices
        self._written.index_copy_(0, self._places, values.to(dtype))
        return self._written.view(latents.n_rows, latents.n_latents)


def with_copies(weights: StepWeights, *, is_low: bool) -> StepWeights:
    """Weights with decoder norms, and with bfloat16 copies of both matrices for low precision."""
    low = torch.bfloat16 if is_low else None
    return dataclasses.replace(
        weights,
        W_dec=weights.W_dec.with_derived(has_norms=True, shadow=low),
        W_enc=weights.W_enc.with_derived(has_norms=False, shadow=low),
    )


def derive_(matrix: AdamMatrix) -> None:
    """Write the norms and the bfloat16 copy of a matrix, where it has them."""
    matrix.derive_norms_()
    if matrix.shadow is not None:
        matrix.shadow.copy_(matrix.weight)


def _grad_values(grad: Tensor, latents: SparseLatents, *, W_dec: Tensor) -> Tensor:
    """Gradients of the stored values in float32; 0 for entries that hold 0, which were not selected."""
    row_ptr, parts = latents.row_ptr, []
    size = max(1, _PRODUCTS_AT_ONCE // latents.n_latents) if grad.device.type == "cpu" else max(1, len(grad))
    flat = latents.rows() * latents.n_latents + latents.indices
    bounds = row_ptr[::size].tolist() if grad.device.type == "cpu" else [0]
    bounds = [*bounds[: -(-len(grad) // size)], len(flat)]
    for i, rows in enumerate(grad.split(size)):
        entries = flat[bounds[i] : bounds[i + 1]] - i * size * latents.n_latents
        parts.append(linear(rows, W_dec).view(-1).index_select(0, entries))
    grad_values = torch.cat(parts).float()
    return torch.where(latents.values > 0, grad_values, 0.0)


def _outer(by_latent: Tensor, by_column: Tensor) -> Tensor:
    """Sum over tokens of their products, `[latent, width]` in float32."""
    if by_latent.device.type != "cpu":
        return (by_latent.T @ by_column).float()
    return linear(by_column.T, by_latent.T).T.float().contiguous()
