"""What a loss term is: a weight with a schedule, a name, and a value computed from one forward pass."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol, final, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from crosscoders.crosscoder import Crosscoder, CrosscoderOutput
from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.parallel import Ranks


@runtime_checkable
class HasThreshold(Protocol):
    """An activation module with a learned threshold per latent, which penalties may read."""

    bandwidth: float

    def thresholds(self) -> Float[Tensor, " latent"]:
        """Threshold of each latent, with gradient."""
        ...


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LossContext:
    """What a term may know besides the forward pass.

    Args:
        progress: Part of the run that has passed, from 0 to 1.
        step: Training step, from 0.
        dead_mask: True for latents that did not fire in the last `dead_after_tokens` tokens; on several
            ranks for those that this rank holds.
    """

    progress: float
    step: int
    dead_mask: Bool[Tensor, " latent"]


@dataclass(frozen=True, kw_only=True)
class LossTerm(ABC):
    """One summand of the objective; a subclass defines `name` and `value`.

    On several ranks `value` sees this rank's rows of the batch, and a mean over tokens is averaged over the
    ranks. A term that is no such mean, or that reads latents which are spread over ranks, computes its value
    for the whole batch by `crosscoder.ranks` and says `is_global`; without it the latents stay on one rank.

    Args:
        weight: Factor in the total.
        warmup_fraction: Part of the run over which the weight grows linearly from 0.

    Raises:
        ValueError: A weight that is negative or not finite, or `warmup_fraction` outside [0, 1].
    """

    name: ClassVar[str]
    is_global: ClassVar[bool] = False
    weight: float = 1.0
    warmup_fraction: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(
                f"{type(self).__name__}: weight must be finite and not negative, got {self.weight}."
            )
        if not 0.0 <= self.warmup_fraction <= 1.0:
            raise ValueError(
                f"{type(self).__name__}: warmup_fraction must be in [0, 1], got {self.warmup_fraction}."
            )

    @abstractmethod
    def value(
        self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext
    ) -> Float[Tensor, ""]:
        """The term before its weight.

        Args:
            output: One pass of the crosscoder, in normalized space.
            crosscoder: The crosscoder that made it.
            context: Progress of the run and which latents are dead.

        Returns:
            A scalar in float32 with gradient: a mean over the tokens of the batch.
        """

    def weight_at(self, progress: float) -> float:
        """Weight after this part of the run.

        Args:
            progress: Part of the run that has passed, from 0 to 1.

        Returns:
            `weight`, or the part of it that the warm-up has reached.
        """
        if progress >= self.warmup_fraction:
            return self.weight
        return self.weight * progress / self.warmup_fraction


def per_token_sum(latents: Tensor | SparseLatents, factor: Tensor, *, ranks: Ranks) -> Tensor:
    """Mean over tokens of the latents' sum, each latent times its factor, over all ranks."""
    if isinstance(latents, SparseLatents):
        return mean_of_sums((latents.values * factor[latents.indices]).sum(), latents.n_rows, ranks=ranks)
    return mean_of_sums(latents.sum(dim=0) @ factor, latents.shape[0], ranks=ranks)


def mean_of_sums(total: Tensor, n_rows: int, *, ranks: Ranks) -> Tensor:
    """Mean over all tokens of what each sums over all latents, from the total of this rank's block."""
    return ranks.mean_over_tokens(ranks.sum_over_latents(total), n_rows)


def threshold_of(crosscoder: Crosscoder, name: str) -> HasThreshold:
    """The activation module of a crosscoder whose activation function has thresholds; ValueError if not."""
    activation = crosscoder.activation
    if not isinstance(activation, HasThreshold):
        raise ValueError(
            f"loss term {name!r} reads thresholds, but {type(crosscoder.config.activation_fn).__name__} "
            "has none; use it with JumpReLU."
        )
    return activation
