"""Reconstruction errors: of the activations, and of what two sources differ in."""

from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from crosscoders.crosscoder import Crosscoder, CrosscoderOutput
from crosscoders.losses.base import LossContext, LossTerm
from crosscoders.sources import column_slices, compared_pair


@final
@dataclass(frozen=True, kw_only=True)
class Reconstruction(LossTerm):
    """Mean over tokens of the squared error summed over the width: sum_s |a^s - ahat^s|^2."""

    name: ClassVar[str] = "reconstruction"
    is_global: ClassVar[bool] = True

    def value(
        self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext
    ) -> Float[Tensor, ""]:
        """The term before its weight."""
        total = (output.inputs - output.reconstruction).square().sum()
        return crosscoder.ranks.mean_over_tokens(total, output.inputs.shape[0])


@final
@dataclass(frozen=True, kw_only=True)
class DifferenceReconstruction(LossTerm):
    """Squared error of the difference of two sources, so that latents attend to what differs.

    Mean over tokens of c^2 |e^b - e^a|^2, where e is the raw error of a source and c = 2 / (1/s_a + 1/s_b)
    the common scale: the one that belongs to the mean of both sources' mean norms. With equal scales it is
    |e^b - e^a|^2 in normalized space. Beside `Reconstruction` the objective is, up to the factor 1 + mu, the
    reconstruction error minus 2 mu / (1 + mu) e^a . e^b (delta-style loss after Delta-Crosscoder, arXiv
    2603.04426, whose own equations are not public; `weight` is mu). It needs a common space.

    Args:
        weight: mu; 0 leaves plain reconstruction, and a large one reconstructs the difference alone.
        warmup_fraction: As in `LossTerm`.
        pair: Names of the two sources; None for the first and the last.

    Raises:
        ValueError: At the first batch, if the two sources differ in width or are not there.
    """

    name: ClassVar[str] = "difference_reconstruction"
    is_global: ClassVar[bool] = True
    pair: tuple[str, str] | None = None

    def value(
        self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext
    ) -> Float[Tensor, ""]:
        """The term before its weight."""
        first, second = compared_pair(
            crosscoder.sources, self.pair, where=f"loss term {self.name!r}", one_width=True
        )
        mean_inverse = (1 / first.scale + 1 / second.scale) / 2
        columns = column_slices(crosscoder.sources)
        error = output.inputs - output.reconstruction
        of_second = error[:, columns[second.name]] / (second.scale * mean_inverse)
        of_first = error[:, columns[first.name]] / (first.scale * mean_inverse)
        return crosscoder.ranks.mean_over_tokens((of_second - of_first).square().sum(), error.shape[0])
