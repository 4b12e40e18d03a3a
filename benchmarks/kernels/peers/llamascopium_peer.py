# pyright: reportMissingImports=false
"""OpenMOSS's llamascopium: its Crosscoder (TopK and BatchTopK), dense, every latent once per source.

Each source's copy of the latents selects for itself, by that source's decoder norm; with equal norms, as at
the start, all select alike. It has one encoder bias per source, whose sum counts: only the first is trained,
or biases would move faster than ours. Its loss is the mean over sources; times their number it is ours. Its
AuxK is another function, so it is off and the step does less. Needs transformer-lens < 4.
"""

import torch
from llamascopium.models.crosscoder import Crosscoder, CrosscoderConfig
from torch import Tensor

from benchmarks.kernels.data import Weights
from benchmarks.kernels.implementation import AutogradImplementation, Implementation
from benchmarks.kernels.problem import Problem, Variant


def build(problem: Problem, weights: Weights, batches: list[Tensor], *, option: str) -> Implementation:
    """No options."""
    shape = problem.shape
    names = [f"source{i}" for i in range(shape.n_sources)]
    config = CrosscoderConfig(
        hook_points=names,
        d_model=shape.d_model,
        expansion_factor=shape.n_latents / shape.d_model,
        act_fn={"topk": "topk", "batch_topk": "batchtopk"}[problem.case.activation],
        top_k=shape.k,
        norm_activation="inference",
        device=problem.device,
    )
    crosscoder = Crosscoder(config)
    rows = weights.dictionary.view(shape.n_latents, shape.n_sources, shape.d_model)
    with torch.no_grad():
        crosscoder.W_E.copy_(rows.permute(1, 2, 0))
        crosscoder.W_D.copy_(rows.permute(1, 0, 2))
        crosscoder.b_E.zero_()
        crosscoder.b_D.zero_()
    only_first = torch.zeros(shape.n_sources, 1, device=problem.device)
    only_first[0] = 1.0
    crosscoder.b_E.register_hook(lambda grad: grad * only_first)

    def split(x: Tensor) -> dict[str, Tensor]:
        return dict(zip(names, x.split(shape.d_model, dim=1), strict=True))

    def count(x: Tensor) -> float:
        acts = crosscoder.encode(torch.stack(list(split(x).values()), dim=1))
        return float((acts > 0).sum() / shape.batch / shape.n_sources)

    return AutogradImplementation(
        problem,
        batches,
        variant=Variant(selection="per_source", auxk=False),
        loss=lambda x: crosscoder.compute_loss(split(x), return_aux_data=False) * shape.n_sources,
        count=count,
        parameters=crosscoder.parameters(),
        foreach=True,
    )
