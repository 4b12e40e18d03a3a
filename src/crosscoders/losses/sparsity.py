"""Sparsity penalties that weigh each latent by its decoder norms."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders.crosscoder import Crosscoder, CrosscoderOutput
from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.losses.base import LossContext, LossTerm, mean_of_sums, per_token_sum


@final
@dataclass(frozen=True, kw_only=True)
class DecoderNormL1(LossTerm):
    """Mean over tokens of sum_j f_j sum_s |d_j^s|_2 (Lindsey et al. 2024, the paper's sparsity penalty)."""

    name: ClassVar[str] = "decoder_norm_l1"
    is_global: ClassVar[bool] = True

    def value(
        self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext
    ) -> Float[Tensor, ""]:
        """The term before its weight."""
        norms = crosscoder.decoder_norms().sum(dim=1)
        return per_token_sum(output.latents, norms, ranks=crosscoder.ranks)


@final
@dataclass(frozen=True, kw_only=True)
class SharedDecoderNormL1(LossTerm):
    """`DecoderNormL1` with a smaller price for the first latents, which are meant to be shared.

    Mean over tokens of r sum_{j < n} f_j sum_s |d_j^s| + sum_{j >= n} f_j sum_s |d_j^s|, with n = `n_shared`
    and r = `shared_factor`. What both models have is cheaper in the shared latents, so that the others need
    not absorb it (Anthropic, Insights on Crosscoder Model Diffing, February 2025: lambda_s / lambda_f of 0.1
    to 0.2). Meant for `structures.SharedLatents(n_shared=...)`, which ties their decoder rows.

    Args:
        weight: Price of the other latents (lambda_f).
        warmup_fraction: As in `LossTerm`.
        n_shared: How many of the first latents cost less.
        shared_factor: Their price relative to the others (lambda_s / lambda_f).

    Raises:
        ValueError: `n_shared` or `shared_factor` is out of range; at the first batch, if the crosscoder has
            fewer latents than `n_shared`.
    """

    name: ClassVar[str] = "shared_decoder_norm_l1"
    is_global: ClassVar[bool] = True
    n_shared: int
    shared_factor: float = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_shared < 1:
            raise ValueError(f"SharedDecoderNormL1: n_shared must be at least 1, got {self.n_shared}.")
        if not 0.0 <= self.shared_factor <= 1.0:
            raise ValueError(
                f"SharedDecoderNormL1: shared_factor must be in [0, 1], got {self.shared_factor}."
            )

    def value(
        self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext
    ) -> Float[Tensor, ""]:
        """The term before its weight.

        Raises:
            ValueError: `n_shared` exceeds the number of latents.
        """
        if self.n_shared > crosscoder.n_latents:
            raise ValueError(
                f"loss term {self.name!r}: n_shared is {self.n_shared}, but the crosscoder has only "
                f"{crosscoder.n_latents} latents."
            )
        norms = crosscoder.decoder_norms().sum(dim=1)
        price = torch.ones_like(norms)
        first = crosscoder.ranks.latents.part(crosscoder.n_latents).start  # of the latents held here
        price[: max(0, self.n_shared - first)] = self.shared_factor
        return per_token_sum(output.latents, norms * price, ranks=crosscoder.ranks)


@final
@dataclass(frozen=True, kw_only=True)
class TanhSparsity(LossTerm):
    """Mean over tokens of sum_j tanh(c f_j sum_s |d_j^s|) (Conerly et al., January 2025 update).

    Args:
        weight: Raised linearly over the whole run in the source; see `warmup_fraction`.
        warmup_fraction: As in `LossTerm`.
        c: Steepness; large activations cost no more than 1.
    """

    name: ClassVar[str] = "tanh_sparsity"
    is_global: ClassVar[bool] = True
    c: float = 4.0

    def value(
        self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext
    ) -> Float[Tensor, ""]:
        """The term before its weight."""
        norms, latents = crosscoder.decoder_norms().sum(dim=1), output.latents
        if isinstance(latents, SparseLatents):
            total = torch.tanh(self.c * latents.values * norms[latents.indices]).sum()
            return mean_of_sums(total, latents.n_rows, ranks=crosscoder.ranks)
        total = torch.tanh(self.c * latents * norms).sum()
        return mean_of_sums(total, latents.shape[0], ranks=crosscoder.ranks)
