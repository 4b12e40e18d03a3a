"""The training step on the CPU: groups that stay in the cache, and never the pre-activations of all tokens.

Encoding goes by groups of tokens. The backward pass and Adam go by groups of latents: a group's gradient is
summed from its entries and, where no clipping needs the norm of all of them first, consumed at once.
"""

import dataclasses
from collections.abc import Iterator
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from crosscoders.kernels.adam import AdamMatrix, AdamStep
from crosscoders.kernels.cpu.backward import Backward, latent_groups, square_sum
from crosscoders.kernels.cpu.selection import BatchTopK, RowTopK
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

# Scores at once, so 16 MiB of float32: memory of this size is reused, twice of it is mapped anew each time
# (swept on a 2-core EPYC Zen 5, torch 2.13, 2048 x 512 x 16384, 2026-11-22; half of it slows the product).
_SCORES_AT_ONCE = 4 << 20
# Of the last batch's smallest score: the part of it below which BatchTopK does not look at first.
_GUESS = 0.8


@final
class CpuStep(StepKernels):
    """See `StepKernels`.

    The encoder's copy carries the selection scale, in either precision: the product then gives scores at
    once, and the few selected ones are divided by the scale again.
    """

    def __init__(self, weights: StepWeights, *, is_low_precision: bool) -> None:
        copy = torch.bfloat16 if is_low_precision else torch.float32
        weights = dataclasses.replace(
            weights,
            W_dec=weights.W_dec.with_derived(has_norms=True, shadow=None),
            W_enc=weights.W_enc.with_derived(has_norms=False, shadow=copy),
        )
        super().__init__(weights, is_low_precision=is_low_precision)
        self._gradient_memory: dict[str, Tensor] = {}
        self._smallest = 0.0
        self.refresh()

    def refresh(self) -> None:
        """Derive norms and the bfloat16 copy from the weights again."""
        n_latents, width = self.weights.W_dec.weight.shape
        for name in ("W_dec", "W_enc"):
            for latents in latent_groups(n_latents, width=width):
                self._derive(name, latents)

    def encode(self, x: Tensor, selection: Selection) -> Encoded:
        """Encode and select group by group."""
        scale, n_rows = self.selection_scale(), x.shape[0]
        n_latents = scale.shape[0]
        flat, scores = self._select(x, selection)
        rows, indices = flat // n_latents, flat % n_latents
        latents = SparseLatents(
            values=scores / scale[indices],
            indices=indices,
            row_ptr=torch.searchsorted(rows, torch.arange(n_rows + 1)),
            n_latents=n_latents,
        )
        smallest = scores.min() if scores.numel() else torch.tensor(torch.inf)
        is_full = not selection.per_row and scores.numel() == selection.k * n_rows
        self._smallest = float(smallest) if is_full else 0.0
        return Encoded(latents, smallest)

    def _select(self, x: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
        """Flat indices and scores; the last batch's smallest score tells where to look first."""
        n_latents = len(self.weights.W_enc.weight)
        if selection.per_row:
            selector = RowTopK(selection.k, n_latents=n_latents)
        else:
            guess = _GUESS * self._smallest
            selector = BatchTopK(selection.k * len(x), n_latents=n_latents, guess=guess)
        for scores in self._scores(x):
            selector.add(scores)
        if isinstance(selector, BatchTopK) and selector.is_short:
            self._smallest = 0.0
            return self._select(x, selection)
        return selector.finish()

    def residual(self, latents: SparseLatents, x: Tensor) -> tuple[Tensor, Tensor]:
        """Decode in float32: a gather is not what limits a CPU."""
        residual = F.embedding_bag(
            latents.indices,
            self.weights.W_dec.weight,
            latents.row_ptr,
            mode="sum",
            per_sample_weights=latents.values,
            include_last_offset=True,
        )
        residual += self.weights.b_dec.weight
        residual -= x
        return residual, residual.square().sum()  # pairwise, as the loss is reported to all its digits

    def update(
        self, grad: Tensor, encoded: Encoded, x: Tensor, *, step: AdamStep, plan: UpdatePlan
    ) -> Tensor:
        """One pass over the latents, or two where clipping or further gradients ask for it."""
        backward = Backward.of(grad, encoded.latents, x=x, W_dec=self.weights.W_dec.weight)
        if plan.max_norm is None and plan.extra is None:
            return self._update_at_once(backward, step=step, plan=plan)
        return self._update_after_all(backward, step=step, plan=plan)

    def _update_at_once(self, backward: Backward, *, step: AdamStep, plan: UpdatePlan) -> Tensor:
        step = self.guarded(step, backward.norm_bound(), plan=plan)
        squares = backward.bias_squares()
        for name in ("W_dec", "W_enc"):
            for latents, grad in backward.row_gradients(name):
                squares += square_sum(grad)
                self._update_rows(name, latents, grad=grad, step=step)
        self._update_biases(backward, step)
        return squares.sqrt().float()

    def _update_after_all(self, backward: Backward, *, step: AdamStep, plan: UpdatePlan) -> Tensor:
        squares = torch.zeros((), dtype=torch.float64)
        whole = self._gradients()
        for name, gradient in whole.items():
            for latents, grad in backward.row_gradients(name):
                squares += square_sum(grad)
                gradient[latents] = grad
        if plan.extra is not None:
            squares += plan.extra.add_to(**whole, b_enc=backward.b_enc)
        # What extra rows cancel can leave less than nothing by rounding.
        norm = (squares + backward.bias_squares()).clamp(min=0).sqrt().float()
        step = self.guarded(step, norm, plan=plan)
        for name, gradient in whole.items():
            for latents in latent_groups(gradient.shape[0], width=gradient.shape[1]):
                self._update_rows(name, latents, grad=gradient[latents], step=step)
        self._update_biases(backward, step)
        return norm

    def _update_rows(self, name: str, latents: slice, *, grad: Tensor, step: AdamStep) -> None:
        matrix: AdamMatrix = getattr(self.weights, name)
        weight, exp_avg, exp_avg_sq = matrix.weight, matrix.exp_avg, matrix.exp_avg_sq
        library_adam_(weight[latents], exp_avg[latents], exp_avg_sq[latents], grad, step=step)
        self._derive(name, latents)

    def _update_biases(self, backward: Backward, step: AdamStep) -> None:
        adam_vector_(self.weights.b_enc, backward.b_enc, step=step)
        adam_vector_(self.weights.b_dec, backward.b_dec, step=step)

    def _derive(self, name: str, latents: slice) -> None:
        """Norms of the decoder, which comes first, and the encoder's copy scaled by them."""
        matrix: AdamMatrix = getattr(self.weights, name)
        matrix.derive_norms_(latents)
        if matrix.shadow is not None:
            assert self.weights.W_dec.norms is not None
            scale = self.weights.W_dec.norms[latents].sum(dim=1, keepdim=True)
            matrix.shadow[latents] = matrix.weight[latents] * scale

    def _scores(self, x: Tensor) -> Iterator[Tensor]:
        """Scaled pre-activations of the next tokens."""
        shadow = self.weights.W_enc.shadow
        assert shadow is not None
        bias = (self.weights.b_enc.weight.view(-1) * self.selection_scale()).to(shadow.dtype)
        for part in x.to(shadow.dtype).split(max(1, _SCORES_AT_ONCE // len(shadow))):
            yield linear(part, shadow, bias)

    def _gradients(self) -> dict[str, Tensor]:
        if not self._gradient_memory:
            like = self.weights.W_dec.weight
            self._gradient_memory = {"W_dec": torch.empty_like(like), "W_enc": torch.empty_like(like)}
        return self._gradient_memory
