"""The training step on CUDA: one dense product, everything after it sparse, nothing waits for the host."""

import dataclasses
from typing import final

import torch
from torch import Tensor

from crosscoders.kernels.adam import AdamStep
from crosscoders.kernels.dense import derive_, with_copies
from crosscoders.kernels.ops import smallest_score
from crosscoders.kernels.sparse_latents import SparseLatents, latent_major
from crosscoders.kernels.step import (
    Encoded,
    Selection,
    StepKernels,
    StepWeights,
    UpdatePlan,
    adam_vector_,
)
from crosscoders.kernels.triton.adam import adam_rows_
from crosscoders.kernels.triton.backward import (
    decoder_backward,
    decoder_backward_adam_,
    encoder_backward,
    encoder_backward_adam_,
)
from crosscoders.kernels.triton.decode import decode_residual
from crosscoders.kernels.triton.selection import batch_topk, row_topk


@final
class TritonStep(StepKernels):
    """See `StepKernels`."""

    def __init__(self, weights: StepWeights, *, is_low_precision: bool) -> None:
        super().__init__(with_copies(weights, is_low=is_low_precision), is_low_precision=is_low_precision)
        self._floor: Tensor | None = None
        # The kernels could write the norms in passing, but sum in another order than `refresh`: a resumed run
        # would select by norms that differ in the last bit. One more read of the decoder avoids that.
        self._decoder = dataclasses.replace(self.weights.W_dec, norms=None)
        self.refresh()

    def refresh(self) -> None:
        """Derive norms and bfloat16 copies from the weights again."""
        self._floor = None
        for matrix in (self.weights.W_dec, self.weights.W_enc):
            derive_(matrix)

    def encode(self, x: Tensor, selection: Selection) -> Encoded:
        """One matrix product, then selection in one read of it."""
        weight = self.weights.W_enc.factor
        bias = self.weights.b_enc.weight.view(-1).to(weight.dtype)
        pre_acts, scale = torch.addmm(bias, self._lowered(x), weight.T), self.selection_scale()
        if selection.per_row:
            latents = row_topk(pre_acts, selection.k, scale=scale)
            return Encoded(latents, smallest_score(latents, scale))
        latents, smallest = batch_topk(pre_acts, selection.k, scale=scale, floor=self._floor)
        self._floor = smallest
        return Encoded(latents, smallest)

    def residual(self, latents: SparseLatents, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gather, bias, residual and its squares in one pass."""
        bias = self.weights.b_dec.weight.view(-1)
        return decode_residual(latents, self.weights.W_dec.factor, b_dec=bias, x=x, out_dtype=torch.float32)

    def update(
        self, grad: Tensor, encoded: Encoded, x: Tensor, *, step: AdamStep, plan: UpdatePlan
    ) -> Tensor:
        """Without clipping and further gradients no gradient of a matrix ever reaches memory."""
        run = self._update_at_once if plan.max_norm is None and plan.extra is None else self._update_after_all
        return run(grad, encoded.latents, x, step=step, plan=plan)

    def _update_at_once(
        self, grad: Tensor, latents: SparseLatents, x: Tensor, *, step: AdamStep, plan: UpdatePlan
    ) -> Tensor:
        weights, by_latent = self.weights, latent_major(latents)
        step = self.guarded(step, self._norm_bound(grad, latents, x), plan=plan)
        grad_values, W_dec_squares = decoder_backward_adam_(
            self._lowered(grad), latents, by_latent, matrix=self._decoder, step=step
        )
        weights.W_dec.derive_norms_()
        b_enc, W_enc_squares = encoder_backward_adam_(
            _of_positive(grad_values, latents), self._lowered(x), by_latent, matrix=weights.W_enc, step=step
        )
        bias_squares = self._update_biases(b_enc, grad.sum(dim=0), step=step)
        return (W_dec_squares + W_enc_squares + bias_squares).sqrt()

    def _update_after_all(
        self, grad: Tensor, latents: SparseLatents, x: Tensor, *, step: AdamStep, plan: UpdatePlan
    ) -> Tensor:
        weights, by_latent = self.weights, latent_major(latents)
        grad_values, W_dec, W_dec_squares = decoder_backward(
            self._lowered(grad), latents, by_latent, W_dec=weights.W_dec.factor
        )
        W_enc, b_enc, W_enc_squares = encoder_backward(
            _of_positive(grad_values, latents), self._lowered(x), by_latent
        )
        squares = W_dec_squares + W_enc_squares
        if plan.extra is not None:
            squares = squares + plan.extra.add_to(W_dec=W_dec, W_enc=W_enc, b_enc=b_enc)
        b_dec = grad.sum(dim=0)
        # What extra rows cancel can leave less than nothing by rounding.
        squares = squares + b_enc.square().sum() + b_dec.square().sum()
        norm = squares.clamp(min=0).sqrt().float()
        step = self.guarded(step, norm, plan=plan)
        adam_rows_(self._decoder, W_dec, step=step)
        weights.W_dec.derive_norms_()
        adam_rows_(weights.W_enc, W_enc, step=step)
        self._update_biases(b_enc, b_dec, step=step)
        return norm

    def _update_biases(self, b_enc: Tensor, b_dec: Tensor, *, step: AdamStep) -> Tensor:
        squares = b_enc.square().sum() + b_dec.square().sum()
        adam_vector_(self.weights.b_enc, b_enc, step=step)
        adam_vector_(self.weights.b_dec, b_dec, step=step)
        return squares

    def _norm_bound(self, grad: Tensor, latents: SparseLatents, x: Tensor) -> Tensor:
        """Finite only if every gradient is (Cauchy-Schwarz); known before any of them is formed."""
        values, rows = latents.values.square().sum(), grad.square().sum()
        largest_row = self.selection_scale().max()
        grad_values = rows * latents.values.numel() * largest_row.square()
        return (values * rows + grad_values * (x.square().sum() + 1) + rows * len(grad)).sqrt()

    def _lowered(self, tensor: Tensor) -> Tensor:
        return tensor.bfloat16() if self.is_low_precision else tensor


def _of_positive(grad_values: Tensor, latents: SparseLatents) -> Tensor:
    """Entries that only fill up the fixed number of them receive no gradient."""
    return torch.where(latents.values > 0, grad_values, 0.0)
