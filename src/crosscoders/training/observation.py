"""Reading a step without touching it: which latents fired, metrics for the log, signs of tampering."""

from collections.abc import Sequence

import torch
from torch import Tensor

from crosscoders.crosscoder import Crosscoder, CrosscoderOutput
from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.metrics import ExplainedVariance, dead_fraction, l0
from crosscoders.sources import Source


def fired_mask(latents: Tensor | SparseLatents) -> Tensor:
    """True for each latent that is non-zero for at least one token."""
    if isinstance(latents, SparseLatents):
        fired = torch.zeros(latents.n_latents, dtype=torch.bool, device=latents.indices.device)
        return fired.index_fill_(0, latents.indices[latents.values != 0], True)
    return (latents != 0).any(dim=0)


def step_metrics(
    output: CrosscoderOutput, *, sources: Sequence[Source], dead_mask: Tensor
) -> dict[str, float]:
    """L0, dead fraction and, where it is defined for this batch, EV per source in normalized space."""
    numbers = {"l0": float(l0(output.latents)), "dead_fraction": float(dead_fraction(dead_mask))}
    explained = ExplainedVariance(sources)
    explained.update(output.inputs, output.reconstruction)
    try:
        return {**numbers, **{f"ev/{name}": value for name, value in explained.compute().items()}}
    except ValueError:
        # One row, or a source that is constant in this batch, has no EV; logging must not end the run.
        return numbers


def versions(crosscoder: Crosscoder) -> list[tuple[int, int]]:
    """Changes whenever a parameter or buffer is written in place or given other storage."""
    tensors = [*crosscoder.parameters(), *crosscoder.buffers()]
    return [(tensor._version, tensor.data_ptr()) for tensor in tensors]
