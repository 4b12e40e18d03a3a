"""What a row-wise Adam update reads and writes; every backend takes these two records."""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class AdamMatrix:
    """A weight matrix with its moments, and what is derived from it in the same pass.

    Args:
        weight: The float32 weights, updated in place.
        exp_avg: First moment.
        exp_avg_sq: Second moment.
        shadow: Copy of the new weights for matrix products, rounded to its dtype, or None for none.
        norms: L2 norm of each new row in each source, or None for none.
        boundaries: First column of each source, and the width; read only for `norms`.
    """

    weight: Float[Tensor, "latent width"]
    exp_avg: Float[Tensor, "latent width"]
    exp_avg_sq: Float[Tensor, "latent width"]
    shadow: Float[Tensor, "latent width"] | None = None
    norms: Float[Tensor, "latent source"] | None = None
    boundaries: tuple[int, ...] = ()

    @property
    def factor(self) -> Float[Tensor, "latent width"]:
        """What matrix products read: the copy if there is one, else the weights."""
        return self.weight if self.shadow is None else self.shadow

    def derive_norms_(self, latents: slice = slice(None)) -> None:
        """Write the norms of these rows, where norms are wanted."""
        if self.norms is not None:
            for source, (start, stop) in enumerate(itertools.pairwise(self.boundaries)):
                rows = self.weight[latents, start:stop]
                self.norms[latents, source] = torch.linalg.vector_norm(rows, dim=1)

    def with_derived(self, *, has_norms: bool, shadow: torch.dtype | None) -> "AdamMatrix":
        """The same tensors with memory for what is derived from them, still to be written.

        Args:
            has_norms: Whether the norms are wanted.
            shadow: Dtype of the copy, or None for none.
        """
        weight, n_sources = self.weight, len(self.boundaries) - 1
        return dataclasses.replace(
            self,
            norms=weight.new_empty(len(weight), n_sources) if has_norms else None,
            shadow=None if shadow is None else torch.empty_like(weight, dtype=shadow),
        )


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class AdamStep:
    """Numbers of one update, without weight decay (Kingma & Ba 1412.6980, as `torch.optim.Adam` computes it).

    m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
    w -= lr / (1 - beta1^n) * m / (sqrt(v) / sqrt(1 - beta2^n) + eps).

    Args:
        lr: Learning rate.
        beta1: Decay rate of the first moment.
        beta2: Decay rate of the second moment.
        eps: Added to the root of the second moment.
        n: Number of this update, from 1.
        grad_scale: Factor of the gradient, on the device; None for 1.
        skip: Flag on the device; where it is set nothing is written. None for never.
    """

    lr: float
    beta1: float
    beta2: float
    eps: float
    n: int
    grad_scale: Float[Tensor, ""] | None = None
    skip: Tensor | None = None
