"""AuxK: dead latents explain the residual."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder, CrosscoderOutput
from crosscoders.kernels.ops import auxk, decode_kept
from crosscoders.losses.base import LossContext, LossTerm
from crosscoders.parallel import ALONE, Axis, Ranks, row_topk_across


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
    is_global: ClassVar[bool] = True
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
        n_dead = crosscoder.ranks.latents.count(dead.numel(), device=dead.device)
        if n_dead == 0:
            return crosscoder.b_dec[:0].sum()
        return self.value_of_dead(
            output.pre_acts.index_select(1, dead),
            crosscoder.W_dec.index_select(0, dead),
            residual=(output.inputs - output.reconstruction).detach(),
            selection_scale=crosscoder.selection_scale()[dead],
            n_latents=crosscoder.n_latents,
            ranks=crosscoder.ranks,
            n_dead=n_dead,
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
        ranks: Ranks = ALONE,
        n_dead: int | None = None,
    ) -> Float[Tensor, ""]:
        """The term from the dead latents alone.

        Args:
            pre_acts: Pre-activations of the dead latents.
            W_dec: Their decoder rows.
            residual: Target minus reconstruction, without gradient.
            selection_scale: Factor of the dead latents in the ranking.
            n_latents: Number of all latents, which bounds the default `k_aux`.
            ranks: Over which rows and latents are spread.
            n_dead: Number of dead latents over all ranks; None where these are all.

        Returns:
            The term before its weight.
        """
        k = self.k_aux or max(1, min(W_dec.shape[1] // 2, n_latents))
        k = min(k, len(W_dec) if n_dead is None else n_dead)
        explained = _explained(pre_acts, W_dec, selection_scale=selection_scale, k=k, ranks=ranks)
        variance = (residual - _mean_row(residual, axis=ranks.data)).square().sum()
        error = (residual - explained).square().sum()
        variance, error = ranks.sum_over_tokens(torch.stack([variance, error])).unbind()
        # A residual without variance has nothing left to explain; the inner where keeps its gradient finite.
        has_variance = variance > 0
        return torch.where(has_variance, error / torch.where(has_variance, variance, 1.0), 0.0)


def _explained(pre_acts: Tensor, W_dec: Tensor, *, selection_scale: Tensor, k: int, ranks: Ranks) -> Tensor:
    """What the `k` best of all dead latents explain of each token."""
    axis = ranks.latents
    if axis.size == 1:
        return auxk(pre_acts, W_dec, selection_scale=selection_scale, k=k)
    kept = row_topk_across(pre_acts.detach() * selection_scale, k, axis=axis)
    return ranks.sum_over_latents(decode_kept(pre_acts, W_dec, kept=kept))


def _mean_row(rows: Tensor, *, axis: Axis) -> Tensor:
    """Mean over the rows of all ranks of the data axis."""
    if axis.size == 1:
        return rows.mean(dim=0)
    total = rows.sum(dim=0, dtype=torch.promote_types(rows.dtype, torch.float32))
    sums = axis.sum(torch.cat([total, total.new_tensor([len(rows)])]))
    return sums[:-1] / sums[-1]
