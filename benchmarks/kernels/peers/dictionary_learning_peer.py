# pyright: reportMissingImports=false
"""dictionary-learning: AutoEncoderTopK and BatchTopKSAE on the concatenated input, dense.

The encoder always reads x - b_dec; the gate computes that variant. Its trainers' projection of gradients,
unit norms, clipping (where the case has none) and auxiliary loss are left out. The release imports only with
the torchvision that belongs to its torch, or without any.
"""

import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from torch import Tensor

from benchmarks.kernels.data import Weights
from benchmarks.kernels.implementation import AutogradImplementation, Implementation
from benchmarks.kernels.problem import Problem, Variant


def build(problem: Problem, weights: Weights, batches: list[Tensor], *, option: str) -> Implementation:
    """No options."""
    shape, is_batch = problem.shape, problem.case.activation == "batch_topk"
    model = (BatchTopKSAE if is_batch else AutoEncoderTopK)(shape.width, shape.n_latents, shape.k)
    with torch.no_grad():
        model.encoder.weight.copy_(weights.dictionary)
        model.decoder.weight.copy_(weights.dictionary.T)
    model.to(problem.device)

    def encode(x: Tensor) -> Tensor:
        return model.encode(x, use_threshold=False)

    return AutogradImplementation(
        problem,
        batches,
        variant=Variant(selection="none", pre_bias=True, auxk=False),
        loss=lambda x: (x - model.decode(encode(x))).pow(2).sum(dim=-1).mean(),
        count=lambda x: float((encode(x) > 0).sum() / shape.batch),
        parameters=model.parameters(),
    )
