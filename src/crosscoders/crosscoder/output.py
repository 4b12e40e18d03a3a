"""What one forward pass of a crosscoder gives to losses and metrics."""

from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor

from crosscoders.kernels.sparse_latents import SparseLatents


@final
@dataclass(frozen=True, eq=False)
class CrosscoderOutput:
    """One forward pass, in normalized space: what losses see.

    Args:
        inputs: Activations times scale.
        reconstruction: Their reconstruction, times scale.
        latents: Dense or sparse latents.
        pre_acts: Pre-activations of every latent.
    """

    inputs: Float[Tensor, "batch width"]
    reconstruction: Float[Tensor, "batch width"]
    latents: Float[Tensor, "batch latent"] | SparseLatents
    pre_acts: Float[Tensor, "batch latent"]
