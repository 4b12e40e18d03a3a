"""What one training step tells."""

from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor

from crosscoders.losses import LossBreakdown


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class StepReport:
    """One step, as callbacks see it; tensors become floats only on request.

    Args:
        step: Steps done, this one included.
        tokens_seen: Tokens trained on, this step's included.
        n_tokens: Tokens of this step.
        learning_rate: Learning rate of this step.
        losses: Values and weights of the terms, detached; their total is what was minimized.
        grad_norm: Norm of the gradient before clipping.
        metrics: Loss, terms, EV per source, L0 and dead fraction as floats at logging steps, else None.
    """

    step: int
    tokens_seen: int
    n_tokens: int
    learning_rate: float
    losses: LossBreakdown
    grad_norm: Float[Tensor, ""]
    metrics: dict[str, float] | None = None

    def scalars(self) -> dict[str, float]:
        """Total loss, each unweighted term, learning rate and gradient norm as floats."""
        terms = {f"loss/{name}": float(term.value) for name, term in self.losses.terms.items()}
        return {
            "loss": float(self.losses.total),
            **terms,
            "learning_rate": self.learning_rate,
            "grad_norm": float(self.grad_norm),
        }
