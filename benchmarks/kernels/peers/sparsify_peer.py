# pyright: reportMissingImports=false
"""EleutherAI's sparsify: a TopK sparse coder on the concatenated input, sparse after the encoder product.

Its default subtracts b_dec from the encoder's input. `transcode=True`, which only switches that off, makes it
the same function as a TopK crosscoder, and is less work; the default is measured beside it. `total_variance`
is set so that its loss, the fraction of variance unexplained, is ours. Its trainer's projection of decoder
gradients and unit norms are left out; its `Adam` is torch.optim.Adam where bitsandbytes is not installed.
"""

import torch
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor

from benchmarks.kernels.data import Weights
from benchmarks.kernels.implementation import AutogradImplementation, Implementation
from benchmarks.kernels.problem import Problem, Variant


def build(problem: Problem, weights: Weights, batches: list[Tensor], *, option: str) -> Implementation:
    """Option "same" (no pre-bias, as ours) or "default"."""
    if problem.case.activation != "topk":
        raise ValueError("it has no BatchTopK")
    shape = problem.shape
    config = SparseCoderConfig(num_latents=shape.n_latents, k=shape.k, transcode=option == "same")
    coder = SparseCoder(shape.width, config, device=problem.device, dtype=torch.float32)
    with torch.no_grad():
        coder.encoder.weight.copy_(weights.dictionary)
        coder.W_dec.copy_(weights.dictionary)
    n_tokens = torch.tensor(float(shape.batch), device=problem.device)
    return AutogradImplementation(
        problem,
        batches,
        variant=Variant(selection="none", pre_bias=option != "same"),
        loss=lambda x: coder(x, total_variance=n_tokens).fvu,
        count=lambda x: float((coder(x).latent_acts > 0).sum() / shape.batch),
        parameters=coder.parameters(),
    )
