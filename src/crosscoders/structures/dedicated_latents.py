"""Latents that belong to one source each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.sources import Source, column_slices
from crosscoders.structures.base import Matrix, Structure, check_count


@final
@dataclass(frozen=True, kw_only=True)
class DedicatedLatents(Structure):
    """The first latents belong to one source each, which alone they read and write; any widths.

    The first `n_per_source[0]` latents are the first source's, the next `n_per_source[1]` the second's, and
    so on; those that remain are free. Encoder and decoder rows of a dedicated latent are exactly zero in
    every other source (Dedicated Feature Crosscoder, arXiv 2602.11729, which takes 1 to 10% of all latents
    for each model). That a latent is dedicated does not make it specific: nothing keeps two dedicated latents
    from holding one feature that both models have. Verify them like any other.

    Args:
        n_per_source: How many latents each source has for itself, in the order of the sources.

    Raises:
        ValueError: A count is negative or all are zero; in a crosscoder, if it has fewer latents or another
            number of sources.
    """

    kind: ClassVar[str] = "dedicated_latents"
    n_per_source: tuple[int, ...]

    def __post_init__(self) -> None:
        counts = self.n_per_source
        is_counts = isinstance(counts, tuple) and all(type(n) is int and n >= 0 for n in counts)
        if not is_counts or not any(counts):
            raise ValueError(
                "DedicatedLatents: n_per_source must be counts, not negative and not all zero, got "
                f"{counts!r}."
            )

    @typed
    def check(self, sources: Sequence[Source], *, n_latents: int) -> None:
        """Raise ValueError for another number of sources or too few latents.

        Raises:
            ValueError: Another number of sources, or fewer latents than are dedicated.
        """
        if len(self.n_per_source) != len(sources):
            raise ValueError(
                f"DedicatedLatents: n_per_source has {len(self.n_per_source)} counts for {len(sources)} "
                f"sources ({', '.join(source.name for source in sources)}); give one for each."
            )
        check_count("DedicatedLatents", n=sum(self.n_per_source), n_latents=n_latents)

    @torch.no_grad()
    @typed
    def impose_(
        self, weight: Float[Tensor, "latent width"], *, matrix: Matrix, sources: Sequence[Source]
    ) -> None:
        """Set every entry of a dedicated latent outside its source to zero, in place."""
        self._clear(weight, sources)

    @typed
    def constrain_gradient(
        self, grad: Float[Tensor, "latent width"], *, matrix: Matrix, sources: Sequence[Source]
    ) -> Float[Tensor, "latent width"]:
        """Zero where the weights are zero: there is nothing free."""
        constrained = grad.clone()
        self._clear(constrained, sources)
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
        """The first dedicated latent that has a weight outside its source, however small, or None."""
        bound = weight.detach()[: sum(self.n_per_source)]
        is_free = torch.ones_like(bound, dtype=torch.bool)
        self._clear(is_free, sources)
        off = ((bound != 0) & ~is_free).any(dim=1)
        return int(off.nonzero()[0]) if bool(off.any()) else None

    def _clear(self, weight: Tensor, sources: Sequence[Source]) -> None:
        """Zero the entries of every dedicated latent outside its source, in place."""
        start = 0
        for n, own in zip(self.n_per_source, column_slices(sources).values()):
            rows = slice(start, start + n)
            weight[rows, : own.start] = 0
            weight[rows, own.stop :] = 0
            start += n
