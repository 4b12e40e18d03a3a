"""The training step on the CPU: groups that stay in the cache, and never the pre-activations of all tokens.

Encoding goes by groups of tokens. The backward pass and Adam go by groups of latents: a group's gradient is
summed from its entries and, where no clipping needs the norm of all of them first, consumed at once.
"""

import itertools
from collections.abc import Iterator
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from crosscoders.kernels.adam import AdamMatrix, AdamStep
from crosscoders.kernels.cpu.backward import Backward, latent_groups, square_sum
from crosscoders.kernels.cpu.selection import BatchTopK, RowTopK
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

# Swept on a 2-core EPYC (Zen 5), torch 2.13, 2048 x 512 x 16384, 2026-11-22: larger groups of tokens make the
# float32 product up to 3% faster and take more memory; the bfloat16 product is fastest at 8 MiB.
_ENCODE_BYTES = {torch.float32: 32 << 20, torch.bfloat16: 8 << 20}


@final
class CpuStep(StepKernels):
    """See `StepKernels`.

    With low precision, the encoder's bfloat16 copy carries the selection scale: the product then gives scores
    at once, and the few selected ones are divided by it again.
    """

    def __init__(self, weights: StepWeights, *, is_low_precision: bool) -> None:
        super().__init__(weights, is_low_precision=is_low_precision)
        self._score_memory: Tensor | None = None
        self._gradient_memory: dict[str, Tensor] = {}
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
        if selection.per_row:
            selector = RowTopK(selection.k, n_latents=n_latents)
        else:
            selector = BatchTopK(selection.k * n_rows, n_latents=n_latents)
        for scores in self._scores(x, scale):
            selector.add(scores)
        flat, scores = selector.finish()
        rows, indices = flat // n_latents, flat % n_latents
        latents = SparseLatents(
            values=scores / scale[indices],
            indices=indices,
            row_ptr=torch.searchsorted(rows, torch.arange(n_rows + 1)),
            n_latents=n_latents,
        )
        smallest = scores.min() if scores.numel() else torch.tensor(torch.inf)
        return Encoded(latents, smallest)

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
        return residual, square_sum(residual).float()

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
        norm = (squares + backward.bias_squares()).sqrt().float()
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
        rows = matrix.weight[latents]
        if matrix.norms is not None:
            for source, (start, stop) in enumerate(itertools.pairwise(matrix.boundaries)):
                matrix.norms[latents, source] = torch.linalg.vector_norm(rows[:, start:stop], dim=1)
        if matrix.shadow is not None:
            assert self.weights.W_dec.norms is not None
            scale = self.weights.W_dec.norms[latents].sum(dim=1, keepdim=True)
            matrix.shadow[latents] = rows * scale

    def _scores(self, x: Tensor, scale: Tensor) -> Iterator[Tensor]:
        """Scaled pre-activations of the next tokens; each group overwrites the last."""
        W_enc, bias = self.weights.W_enc, self.weights.b_enc.weight.view(-1)
        weight = W_enc.weight
        if W_enc.shadow is not None:
            x, weight, bias = x.to(W_enc.shadow.dtype), W_enc.shadow, (bias * scale).to(W_enc.shadow.dtype)
        memory = self._score_rows(x.dtype, n_rows=x.shape[0])
        for part in x.split(memory.shape[0]):
            scores = torch.addmm(bias, part, weight.T, out=memory[: part.shape[0]])
            yield scores if W_enc.shadow is not None else scores.mul_(scale)

    def _score_rows(self, dtype: torch.dtype, *, n_rows: int) -> Tensor:
        n_latents = self.weights.W_enc.weight.shape[0]
        n_rows = min(n_rows, max(1, _ENCODE_BYTES[dtype] // (dtype.itemsize * n_latents)))
        if self._score_memory is None or self._score_memory.shape[0] < n_rows:
            self._score_memory = torch.empty(n_rows, n_latents, dtype=dtype)
        return self._score_memory

    def _gradients(self) -> dict[str, Tensor]:
        if not self._gradient_memory:
            like = self.weights.W_dec.weight
            self._gradient_memory = {"W_dec": torch.empty_like(like), "W_enc": torch.empty_like(like)}
        return self._gradient_memory
