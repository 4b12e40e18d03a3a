"""The training step on dense matrix products: what wins where many latents fire, on any device.

Selections are the same as everywhere; after them the latents are written out with their zeros, and decoding
and the three backward products are matrix products (bfloat16 with low precision), followed by PyTorch's fused
Adam.
"""

import dataclasses
import itertools
from typing import final

import torch
from torch import Tensor

from crosscoders.kernels.adam import AdamMatrix, AdamStep
from crosscoders.kernels.ops import select
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


@final
class DenseStep(StepKernels):
    """See `StepKernels`."""

    def __init__(self, weights: StepWeights, *, is_low_precision: bool) -> None:
        super().__init__(with_copies(weights, is_low=is_low_precision), is_low_precision=is_low_precision)
        self.refresh()

    def refresh(self) -> None:
        """Derive norms and bfloat16 copies from the weights again."""
        for matrix in (self.weights.W_dec, self.weights.W_enc):
            derive_(matrix)

    def encode(self, x: Tensor, selection: Selection) -> Encoded:
        """Encode everything, then select."""
        weight = _product_weight(self.weights.W_enc)
        bias = self.weights.b_enc.weight.view(-1).to(weight.dtype)
        pre_acts = torch.addmm(bias, x.to(weight.dtype), weight.T)
        return select(pre_acts, self.selection_scale(), selection=selection)

    def residual(self, latents: SparseLatents, x: Tensor) -> tuple[Tensor, Tensor]:
        """Decode with one matrix product."""
        weight = _product_weight(self.weights.W_dec)
        decoded = (latents.to_dense().to(weight.dtype) @ weight).float()
        residual = decoded + self.weights.b_dec.weight - x
        return residual, residual.square().sum()

    def update(
        self, grad: Tensor, encoded: Encoded, x: Tensor, *, step: AdamStep, plan: UpdatePlan
    ) -> Tensor:
        """Three matrix products, clipping, fused Adam."""
        latents, weights = encoded.latents, self.weights
        dense, low = latents.to_dense(), _product_weight(weights.W_dec)
        fires = dense != 0
        grad_low = grad.to(low.dtype)
        grad_pre = torch.where(fires, grad_low @ low.T, 0.0)
        grads = {
            "W_dec": (dense.to(low.dtype).T @ grad_low).float(),
            "W_enc": (grad_pre.T @ x.to(low.dtype)).float(),
            "b_enc": grad_pre.float().sum(dim=0),
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
    if matrix.norms is not None:
        for source, (start, stop) in enumerate(itertools.pairwise(matrix.boundaries)):
            matrix.norms[:, source] = torch.linalg.vector_norm(matrix.weight[:, start:stop], dim=1)
    if matrix.shadow is not None:
        matrix.shadow.copy_(matrix.weight)


def _product_weight(matrix: AdamMatrix) -> Tensor:
    return matrix.weight if matrix.shadow is None else matrix.shadow
