"""AuxK: dead latents explain the residual."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder, CrosscoderOutput
from crosscoders.kernels.ops import auxk
from crosscoders.losses.base import LossContext, LossTerm


@final
@dataclass(frozen=True, kw_only=True)
class AuxK(LossTerm):
    """Let dead latents explain the residual (Gao et al. 2406.04093): revives them, touches no living one.

    With e = a - ahat (no gradient) and ehat the decoding of the `k_aux` dead latents with the largest scaled
    pre-activation: |e - ehat|^2 / |e - mean(e)|^2. Zero if no latent is dead or the residual does not vary.

    Args:
        weight: 1/32 in the source.
        warmup_fraction: As in `LossTerm`.
        k_aux: Dead latents per token; None for min(width / 2, n_latents).

    Raises:
        ValueError: `k_aux` below 1.
    """

    name: ClassVar[str] = "auxk"
    weight: float = 1 / 32
    k_aux: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k_aux is not None and self.k_aux < 1:
            raise ValueError(f"AuxK: k_aux must be at least 1 or None, got {self.k_aux}.")

    def value(
        self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext
    ) -> Float[Tensor, ""]:
        """The term before its weight."""
        dead = context.dead_mask.nonzero().squeeze(1)
        if dead.numel() == 0:
            return crosscoder.b_dec[:0].sum()
        return self.value_of_dead(
            output.pre_acts.index_select(1, dead),
            crosscoder.W_dec.index_select(0, dead),
            residual=(output.inputs - output.reconstruction).detach(),
            selection_scale=crosscoder.selection_scale()[dead],
            n_latents=crosscoder.n_latents,
        )

    @typed
    def value_of_dead(
        self,
        pre_acts: Float[Tensor, "batch latent"],
        W_dec: Float[Tensor, "latent width"],
        *,
        residual: Float[Tensor, "batch width"],
        selection_scale: Float[Tensor, " latent"],
        n_latents: int,
    ) -> Float[Tensor, ""]:
        """The term from the dead latents alone.

        Args:
            pre_acts: Pre-activations of the dead latents.
            W_dec: Their decoder rows.
            residual: Target minus reconstruction, without gradient.
            selection_scale: Factor of the dead latents in the ranking.
            n_latents: Number of all latents, which bounds the default `k_aux`.

        Returns:
            The term before its weight.
        """
        k = self.k_aux or max(1, min(W_dec.shape[1] // 2, n_latents))
        explained = auxk(pre_acts, W_dec, selection_scale=selection_scale, k=k)
        variance = (residual - residual.mean(dim=0)).square().sum()
        error = (residual - explained).square().sum()
        # A residual without variance has nothing left to explain; the inner where keeps its gradient finite.
        has_variance = variance > 0
        return torch.where(has_variance, error / torch.where(has_variance, variance, 1.0), 0.0)
