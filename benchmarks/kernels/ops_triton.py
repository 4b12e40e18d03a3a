"""Every Triton kernel of the step by itself, on a GPU, in bfloat16."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.kernels.data import Weights
from benchmarks.kernels.ops import STEP, Calls, step_weights
from benchmarks.kernels.problem import Problem
from crosscoders.kernels.adam import AdamMatrix
from crosscoders.kernels.sparse_latents import latent_major
from crosscoders.kernels.triton.adam import adam_rows_
from crosscoders.kernels.triton.backward import (
    decoder_backward,
    decoder_backward_adam_,
    encoder_backward,
    encoder_backward_adam_,
)
from crosscoders.kernels.triton.decode import decode_residual
from crosscoders.kernels.triton.selection import batch_topk, row_topk


def build(problem: Problem, weights: Weights, batches: list[Tensor], *, option: str) -> Calls:
    """No options."""
    matrices, k = step_weights(problem, weights), problem.shape.k
    encoder, rows = _shadow(matrices.W_enc), _shadow(matrices.W_dec)
    x = batches[0].bfloat16()
    pre = x @ encoder.T
    scale = torch.ones(problem.shape.n_latents, device=x.device)
    b_dec = torch.zeros(problem.shape.width, device=x.device)
    latents = row_topk(pre, k, scale=scale)
    by_latent, floor = latent_major(latents), batch_topk(pre, k, scale=scale)[1]
    grad = (
        decode_residual(latents, rows, b_dec=b_dec, x=batches[0], out_dtype=torch.float32)[0] / len(x)
    ).bfloat16()
    grad_values, grad_rows, _ = decoder_backward(grad, latents, by_latent, W_dec=rows)
    calls: dict[str, Callable[[], object]] = {
        "row_topk": lambda: row_topk(pre, k, scale=scale),
        "batch_topk": lambda: batch_topk(pre, k, scale=scale, floor=floor),
        "latent_major": lambda: latent_major(latents),
        "decode_residual": lambda: decode_residual(
            latents, rows, b_dec=b_dec, x=batches[0], out_dtype=torch.float32
        ),
        "decoder_backward": lambda: decoder_backward(grad, latents, by_latent, W_dec=rows),
        "encoder_backward": lambda: encoder_backward(grad_values, x, by_latent),
        "adam_rows_": lambda: adam_rows_(matrices.W_dec, grad_rows, step=STEP),
        "decoder_backward_adam_": lambda: decoder_backward_adam_(
            grad, latents, by_latent, matrix=matrices.W_dec, step=STEP
        ),
        "encoder_backward_adam_": lambda: encoder_backward_adam_(
            grad_values, x, by_latent, matrix=matrices.W_enc, step=STEP
        ),
    }
    return Calls(calls, device=problem.device)


def _shadow(matrix: AdamMatrix) -> Tensor:
    assert matrix.shadow is not None, "the table is for bfloat16"
    return matrix.shadow.copy_(matrix.weight)
