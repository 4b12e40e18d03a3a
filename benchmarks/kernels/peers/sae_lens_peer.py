# pyright: reportMissingImports=false
"""SAELens: TopK and BatchTopK training SAEs on the concatenated input.

`apply_b_dec_to_input=False` makes the function ours except that latents rank by the joint decoder norm.
Its trainer clips every gradient to norm 1 and counts firing latents densely; both are left out where the case
has no clip. Its auxiliary loss decodes negative pre-activations too and is scaled otherwise: not equal to
AuxK, so it is off (no dead mask) and the step does less than ours. Needs transformer-lens < 4.
"""

import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor

from benchmarks.kernels.data import Weights
from benchmarks.kernels.implementation import AutogradImplementation, Implementation
from benchmarks.kernels.problem import Problem, Variant


def build(problem: Problem, weights: Weights, batches: list[Tensor], *, option: str) -> Implementation:
    """Option "dense" or "sparse" (`use_sparse_activations`, which is for float32 without autocast)."""
    if option == "sparse" and (problem.precision != "float32" or problem.case.activation != "topk"):
        raise ValueError("its sparse activations are for TopK in float32 without autocast")
    shape, is_batch = problem.shape, problem.case.activation == "batch_topk"
    new_config, new_sae = TopKTrainingSAEConfig, TopKTrainingSAE
    if is_batch:
        new_config, new_sae = BatchTopKTrainingSAEConfig, BatchTopKTrainingSAE
    config = new_config(
        d_in=shape.width,
        d_sae=shape.n_latents,
        k=shape.k,
        device=problem.device,
        apply_b_dec_to_input=False,
        use_sparse_activations=option == "sparse",
        # Its rescaling by decoder norm fails on sparse tensors in the backward pass.
        rescale_acts_by_decoder_norm=option != "sparse",
    )
    sae = new_sae(config)
    with torch.no_grad():
        sae.W_enc.copy_(weights.dictionary.T)
        sae.W_dec.copy_(weights.dictionary)
    sae.train()

    def loss(x: Tensor) -> Tensor:
        step_input = TrainStepInput(
            sae_in=x, coefficients={}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
        )
        return sae.training_forward_pass(step_input).loss

    def count(x: Tensor) -> float:
        acts = sae.encode_with_hidden_pre(x)[0]
        acts = acts.to_dense() if acts.is_sparse else acts
        return float((acts > 0).sum() / shape.batch)

    return AutogradImplementation(
        problem,
        batches,
        variant=Variant(selection="none" if option == "sparse" else "joint", auxk=False),
        loss=loss,
        count=count,
        parameters=sae.parameters(),
    )
