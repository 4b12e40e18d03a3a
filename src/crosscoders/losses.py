"""Loss terms and their breakdown: the scalar that is logged is the scalar that is minimized.

Every term is a mean over tokens in normalized space. Terms accept dense and sparse latents.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.activation_fns.jumprelu import step
from crosscoders.crosscoder import Crosscoder, CrosscoderOutput
from crosscoders.kernels.ops import auxk
from crosscoders.kernels.sparse_latents import SparseLatents

__all__ = [
    "AuxK",
    "DecoderNormL1",
    "HasThreshold",
    "JumpReLUL0",
    "LossBreakdown",
    "LossContext",
    "LossTerm",
    "PreActivation",
    "Reconstruction",
    "TanhSparsity",
    "WeightedTerm",
    "check_objective",
    "compute_losses",
]


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
        dead_mask: True for latents that did not fire in the last `dead_after_tokens` tokens.
    """

    progress: float
    step: int
    dead_mask: Bool[Tensor, " latent"]


@dataclass(frozen=True, kw_only=True)
class LossTerm(ABC):
    """One summand of the objective; a subclass defines `name` and `value`.

    Args:
        weight: Factor in the total.
        warmup_fraction: Part of the run over which the weight grows linearly from 0.
    """

    name: ClassVar[str]
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
        """The term before its weight."""

    def weight_at(self, progress: float) -> float:
        """Weight after this part of the run."""
        if progress >= self.warmup_fraction:
            return self.weight
        return self.weight * progress / self.warmup_fraction


@final
@dataclass(frozen=True, kw_only=True)
class Reconstruction(LossTerm):
    """Mean over tokens of the squared error summed over the width: sum_s |a^s - ahat^s|^2."""

    name: ClassVar[str] = "reconstruction"

    def value(
        self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext
    ) -> Float[Tensor, ""]:
        """The term before its weight."""
        return (output.inputs - output.reconstruction).square().sum() / output.inputs.shape[0]


@final
@dataclass(frozen=True, kw_only=True)
class DecoderNormL1(LossTerm):
    """Mean over tokens of sum_j f_j sum_s |d_j^s|_2 (Lindsey et al. 2024, the paper's sparsity penalty)."""

    name: ClassVar[str] = "decoder_norm_l1"

    def value(
        self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext
    ) -> Float[Tensor, ""]:
        """The term before its weight."""
        norms = crosscoder.decoder_norms().sum(dim=1)
        return _per_token_sum(output.latents, norms)


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


@final
@dataclass(frozen=True, kw_only=True)
class JumpReLUL0(LossTerm):
    """Mean number of latents above their threshold, with a straight-through gradient to the thresholds only.

    sum_j 1[pre_j > t_j] (Rajamanoharan et al. 2407.14435); the bandwidth is the activation function's.
    """

    name: ClassVar[str] = "jumprelu_l0"

    def value(
        self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext
    ) -> Float[Tensor, ""]:
        """The term before its weight."""
        activation = _threshold_of(crosscoder, self.name)
        fires = step(output.pre_acts, activation.thresholds(), bandwidth=activation.bandwidth)
        return fires.sum() / output.pre_acts.shape[0]


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
    c: float = 4.0

    def value(
        self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext
    ) -> Float[Tensor, ""]:
        """The term before its weight."""
        norms, latents = crosscoder.decoder_norms().sum(dim=1), output.latents
        if isinstance(latents, SparseLatents):
            return torch.tanh(self.c * latents.values * norms[latents.indices]).sum() / latents.n_rows
        return torch.tanh(self.c * latents * norms).sum() / latents.shape[0]


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
    weight: float = 3e-6

    def value(
        self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext
    ) -> Float[Tensor, ""]:
        """The term before its weight."""
        threshold = _threshold_of(crosscoder, self.name).thresholds()
        shortfall = (threshold - output.pre_acts).relu().sum(dim=0)
        return shortfall @ crosscoder.decoder_norms().sum(dim=1) / output.pre_acts.shape[0]


@final
@dataclass(frozen=True, eq=False)
class WeightedTerm:
    """A term's value and the weight it has at this step."""

    value: Float[Tensor, ""]
    weight: float


@final
@dataclass(frozen=True, eq=False)
class LossBreakdown:
    """The terms of one step; `total` is their weighted sum, both for the optimizer and for the log.

    Args:
        terms: Terms by name.
    """

    terms: dict[str, WeightedTerm]

    @property
    def total(self) -> Float[Tensor, ""]:
        """Sum of weight times value."""
        weighted = [term.weight * term.value for term in self.terms.values()]
        return torch.stack(weighted).sum()

    def detach(self) -> "LossBreakdown":
        """The same numbers without the graph."""
        return LossBreakdown(
            {name: WeightedTerm(term.value.detach(), term.weight) for name, term in self.terms.items()}
        )


@typed
def check_objective(objective: Sequence[LossTerm]) -> None:
    """Check that there is at least one term and that no name repeats.

    Args:
        objective: The terms.

    Raises:
        ValueError: No term, or two of the same name.
    """
    names = [term.name for term in objective]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"objective: expected one or more terms with different names, got {names}.")


@typed
def compute_losses(
    objective: Sequence[LossTerm], output: CrosscoderOutput, *, crosscoder: Crosscoder, context: LossContext
) -> LossBreakdown:
    """Evaluate every term of an objective.

    Args:
        objective: Terms with different names.
        output: The forward pass.
        crosscoder: The crosscoder that made it.
        context: Progress and dead latents.

    Returns:
        Values and weights by name.
    """
    return LossBreakdown(
        {
            term.name: WeightedTerm(term.value(output, crosscoder, context), term.weight_at(context.progress))
            for term in objective
        }
    )


def _per_token_sum(latents: Tensor | SparseLatents, factor: Tensor) -> Tensor:
    if isinstance(latents, SparseLatents):
        return (latents.values * factor[latents.indices]).sum() / latents.n_rows
    return latents.sum(dim=0) @ factor / latents.shape[0]


def _threshold_of(crosscoder: Crosscoder, name: str) -> HasThreshold:
    activation = crosscoder.activation
    if not isinstance(activation, HasThreshold):
        raise ValueError(
            f"loss term {name!r} reads thresholds, but {type(crosscoder.config.activation_fn).__name__} "
            "has none; use it with JumpReLU."
        )
    return activation
