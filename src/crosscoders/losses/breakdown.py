"""The terms of one step and their total: the scalar that is logged is the scalar that is minimized."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder, CrosscoderOutput
from crosscoders.losses.base import LossContext, LossTerm


@final
@dataclass(frozen=True, eq=False)
class WeightedTerm:
    """A term's value and the weight it has at this step.

    Args:
        value: The term before its weight, a scalar with gradient.
        weight: Its factor in the total at this step.
    """

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
