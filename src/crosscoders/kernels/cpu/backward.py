"""Gradients of one batch on the CPU, entry by entry and group of latents by group of latents."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from crosscoders.kernels.sparse_latents import SparseLatents, latent_major

# Weights, moments and gradient of a group of latents stay within the caches: 1 to 4 MiB of weights were
# equally fast on a 2-core EPYC (Zen 5), torch 2.13, 16384 x 512, 2026-11-22; all at once took 3 times that.
_GROUP_BYTES = 2 << 20


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Backward:
    """Gradients of a batch, sorted by latent; the row sums are left to `row_gradients`.

    Args:
        rows: Row of each entry.
        col_ptr: First entry of each latent, and their number.
        values: Value of each entry.
        grad_values: Gradient of each value: `<grad[row], W_dec[latent]>`.
        grad: Gradient with respect to the reconstruction.
        x: What was encoded.
        b_enc: Gradient of the encoder's bias.
        b_dec: Gradient of the decoder's bias.
    """

    rows: Tensor
    col_ptr: Tensor
    values: Tensor
    grad_values: Tensor
    grad: Tensor
    x: Tensor
    b_enc: Tensor
    b_dec: Tensor

    @classmethod
    def of(cls, grad: Tensor, latents: SparseLatents, *, x: Tensor, W_dec: Tensor) -> "Backward":
        """Gradients of the values and the biases, with the weights as they are now."""
        by_latent = latent_major(latents)
        rows, col_ptr = by_latent.rows, by_latent.col_ptr
        entry_latents = latents.indices[by_latent.order]
        # The dot products of embedding_bag's own backward; in this order W_dec is read once, in sequence.
        grad_values = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            W_dec, grad, rows, col_ptr[:-1], entry_latents, 0
        )
        return cls(
            rows=rows,
            col_ptr=col_ptr,
            values=latents.values[by_latent.order],
            grad_values=grad_values,
            grad=grad,
            x=x,
            b_enc=grad.new_zeros(latents.n_latents).index_add_(0, entry_latents, grad_values),
            b_dec=grad.sum(dim=0),
        )

    def row_gradients(self, name: str) -> Iterator[tuple[slice, Tensor]]:
        """Gradient of "W_dec" or "W_enc", one group of latents after the other."""
        weights, dense = (self.values, self.grad) if name == "W_dec" else (self.grad_values, self.x)
        groups = list(latent_groups(len(self.col_ptr) - 1, width=dense.shape[1]))
        bounds = self.col_ptr[[group.start for group in groups] + [groups[-1].stop]].tolist()
        for group, (start, stop) in zip(groups, itertools.pairwise(bounds)):
            yield (
                group,
                F.embedding_bag(
                    self.rows[start:stop],
                    dense,
                    self.col_ptr[group.start : group.stop + 1] - start,
                    mode="sum",
                    per_sample_weights=weights[start:stop],
                    include_last_offset=True,
                ),
            )

    def norm_bound(self) -> Tensor:
        """Upper bound of the gradient norm, without forming the rows (Cauchy-Schwarz, summed over latents).

        |sum_b v_b g_b|^2 <= sum_b v_b^2 * sum_b |g_b|^2. The square is rounded to float32, as in Adam: if the
        bound is finite, so are the gradient and its squares.
        """
        decoder = square_sum(self.values) * square_sum(self.grad)
        encoder = square_sum(self.grad_values) * square_sum(self.x)
        return (decoder + encoder + self.bias_squares()).float().sqrt()

    def bias_squares(self) -> Tensor:
        """Sum of the squares of both bias gradients."""
        return square_sum(self.b_enc) + square_sum(self.b_dec)


def latent_groups(n_latents: int, *, width: int) -> Iterator[slice]:
    """Runs of latents whose float32 rows fill about `_GROUP_BYTES`."""
    size = max(1, _GROUP_BYTES // (4 * width))
    for start in range(0, n_latents, size):
        yield slice(start, min(start + size, n_latents))


def square_sum(tensor: Tensor) -> Tensor:
    """Sum of squares as a float64 scalar, taken in the tensor's own precision."""
    flat = tensor.reshape(-1)
    return torch.dot(flat, flat).double()
