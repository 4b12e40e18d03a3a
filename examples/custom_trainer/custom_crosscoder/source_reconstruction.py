"""SourceReconstruction: squared error with a factor for each source."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders import Crosscoder, CrosscoderOutput, LossContext, LossTerm


@final
@dataclass(frozen=True, kw_only=True)
class SourceReconstruction(LossTerm):
    """Mean over tokens of sum_s c_s |a^s - ahat^s|^2; with every c_s = 1 it is `Reconstruction`.

    A larger factor spends more of the dictionary on that source, for instance on the distilled model when
    the question is what distillation added.

    Args:
        weight: As in `LossTerm`.
        warmup_fraction: As in `LossTerm`.
        sources: Names of all sources of the crosscoder.
        factors: The factor of each, in the same order.
    """

    name: ClassVar[str] = "source_reconstruction"
    sources: tuple[str, ...]
    factors: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.sources) != len(self.factors):
            raise ValueError(
                f"SourceReconstruction: got {self.factors} as factors for {self.sources}; give one each."
            )
        if not all(math.isfinite(factor) and factor >= 0 for factor in self.factors):
            raise ValueError(
                f"SourceReconstruction: factors must be finite and not negative, got {self.factors}."
            )

    def value(
        self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext
    ) -> Float[Tensor, ""]:
        """The term before its weight."""
        names = tuple(source.name for source in crosscoder.sources)
        if names != self.sources:
            raise ValueError(f"SourceReconstruction: made for {self.sources}, the crosscoder has {names}.")
        widths = [source.d_model for source in crosscoder.sources]
        errors = (output.inputs - output.reconstruction).square().split(widths, dim=1)
        parts = [factor * error.sum() for factor, error in zip(self.factors, errors, strict=True)]
        return torch.stack(parts).sum() / output.inputs.shape[0]
