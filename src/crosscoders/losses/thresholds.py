"""Penalties that read the learned thresholds of an activation function."""

from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from crosscoders.activation_fns.jumprelu import step
from crosscoders.crosscoder import Crosscoder, CrosscoderOutput
from crosscoders.losses.base import LossContext, LossTerm, mean_of_sums, threshold_of


@final
@dataclass(frozen=True, kw_only=True)
class JumpReLUL0(LossTerm):
    """Mean number of latents above their threshold, with a straight-through gradient to the thresholds only.

    sum_j 1[pre_j > t_j] (Rajamanoharan et al. 2407.14435); the bandwidth is the activation function's.
    """

    name: ClassVar[str] = "jumprelu_l0"
    is_global: ClassVar[bool] = True

    def value(
        self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext
    ) -> Float[Tensor, ""]:
        """The term before its weight."""
        activation = threshold_of(crosscoder, self.name)
        fires = step(output.pre_acts, activation.thresholds(), bandwidth=activation.bandwidth)
        return mean_of_sums(fires.sum(), output.pre_acts.shape[0], ranks=crosscoder.ranks)


@final
@dataclass(frozen=True, kw_only=True)
class PreActivation(LossTerm):
    """Mean over tokens of sum_j ReLU(t_j - pre_j) sum_s |d_j^s| (Conerly et al., January 2025 update).

    Gives latents that never reach their threshold a gradient.

    Args:
        weight: 3e-6 in the source.
        warmup_fraction: As in `LossTerm`.
    """

    name: ClassVar[str] = "pre_activation"
    is_global: ClassVar[bool] = True
    weight: float = 3e-6

    def value(
        self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext
    ) -> Float[Tensor, ""]:
        """The term before its weight."""
        threshold = threshold_of(crosscoder, self.name).thresholds()
        shortfall = (threshold - output.pre_acts).relu().sum(dim=0)
        total = shortfall @ crosscoder.decoder_norms().sum(dim=1)
        return mean_of_sums(total, output.pre_acts.shape[0], ranks=crosscoder.ranks)
