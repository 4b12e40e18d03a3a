"""Latents with one decoder row for all sources."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.sources import Source
from crosscoders.structures.base import Matrix, Structure, check_count


@final
@dataclass(frozen=True, kw_only=True)
class SharedLatents(Structure):
    """The first latents have the same decoder vector in every source: d_j^s = d_j for j < n_shared.

    "The same" holds in normalized space, where sources weigh alike; in raw activations the vectors then
    differ by the ratio of the scales. All other latents are free, and the encoder is. Give the shared
    latents a smaller price (`losses.SharedDecoderNormL1`), so that what both models have ends there and the
    others need not absorb it (Anthropic, Insights on Crosscoder Model Diffing, February 2025). The gradient
    of d_j is the sum over sources of the gradients of its copies.

    Args:
        n_shared: How many latents; a choice of yours, the source gives no rule.

    Raises:
        ValueError: `n_shared` is below 1; in a crosscoder, if it has fewer latents or its sources differ in
            width.
    """

    kind: ClassVar[str] = "shared_latents"
    n_shared: int

    def __post_init__(self) -> None:
        if self.n_shared < 1:
            raise ValueError(f"SharedLatents: n_shared must be at least 1, got {self.n_shared}.")

    @typed
    def check(self, sources: Sequence[Source], *, n_latents: int) -> None:
        """Raise ValueError for sources of different widths or too few latents.

        Raises:
            ValueError: Sources of different widths, or fewer latents than are shared.
        """
        widths = {source.name: source.d_model for source in sources}
        if len(set(widths.values())) > 1:
            raise ValueError(
                f"SharedLatents: one decoder row for all sources needs one width, got {widths}; "
                "DedicatedLatents works for any widths."
            )
        check_count("SharedLatents", n=self.n_shared, n_latents=n_latents)

    @torch.no_grad()
    @typed
    def impose_(
        self, weight: Float[Tensor, "latent width"], *, matrix: Matrix, sources: Sequence[Source]
    ) -> None:
        """Give each shared latent the mean of its decoder slices in every source, in place."""
        if matrix == "W_dec":
            slices = self._slices(weight, sources)
            first = slices[:, :1]
            # As an offset from the first slice: equal slices then stay as they are, whatever their number.
            slices.copy_(first + (slices - first).mean(dim=1, keepdim=True))

    @typed
    def constrain_gradient(
        self, grad: Float[Tensor, "latent width"], *, matrix: Matrix, sources: Sequence[Source]
    ) -> Float[Tensor, "latent width"]:
        """Replace each slice's gradient by the sum over sources."""
        if matrix != "W_dec":
            return grad
        constrained = grad.clone()
        slices = self._slices(constrained, sources)
        slices.copy_(slices.sum(dim=1, keepdim=True).expand_as(slices))
        return constrained

    @typed
    def broken_latent(
        self,
        weight: Float[Tensor, "latent width"],
        *,
        matrix: Matrix,
        sources: Sequence[Source],
        rtol: float = 0.0,
    ) -> int | None:
        """The first shared latent whose decoder slices differ, or None."""
        if matrix != "W_dec":
            return None
        slices = self._slices(weight.detach(), sources)
        largest = slices.abs().amax(dim=(1, 2))
        off = ~((slices - slices[:, :1]).abs().amax(dim=(1, 2)) <= rtol * largest)
        return int(off.nonzero()[0]) if bool(off.any()) else None

    def _slices(self, weight: Tensor, sources: Sequence[Source]) -> Tensor:
        """The bound part as a view `[n_shared, source, d_model]`."""
        return weight[: self.n_shared].view(self.n_shared, len(sources), sources[0].d_model)
