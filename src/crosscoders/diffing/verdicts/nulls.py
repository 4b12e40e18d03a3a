"""How many latents a null pair, whose models do not differ in what matters, would have called specific."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.bootstrap import wilson_interval

BENIGN_DRIFT = "benign drift"  # the null that false-exclusive rates refer to; others are named with theirs
_EDGES_PER_DECADE = 2


@final
@dataclass(frozen=True, kw_only=True)
class NullReference:
    """Latents of null crosscoders, and those among them that were called specific, by firing frequency.

    Args:
        name: What the null is, such as "benign drift".
        n_crosscoders: Crosscoders that were pooled.
        n_live: Live latents by frequency bin, key the bin's number.
        n_false: Those called model-specific.
    """

    name: str
    n_crosscoders: int
    n_live: dict[int, int]
    n_false: dict[int, int]

    @property
    def total_live(self) -> int:
        """Live latents over all bins."""
        return sum(self.n_live.values())

    @property
    def total_false(self) -> int:
        """Latents called model-specific over all bins."""
        return sum(self.n_false.values())

    def rate(self) -> tuple[float, float, float]:
        """False-exclusive rate over all live latents with its 95% Wilson interval; NaN without latents."""
        low, high = wilson_interval(self.total_false, self.total_live)
        rate = self.total_false / self.total_live if self.total_live else float("nan")
        return rate, low, high

    @typed
    def expected(self, frequency: Float[Tensor, " latent"]) -> tuple[float, float]:
        """How many of these latents the null would have called specific.

        sum over latents of the null's false-exclusive rate among latents that fire about as often (bins of
        half a decade). A bin without null latents takes the rate over all bins.

        Args:
            frequency: Share of tokens on which each live latent fires, above 0.

        Returns:
            The expected number, and the number at the upper end of the 95% Wilson interval of the rate over
            all bins; NaN if the null has no live latents.

        Raises:
            ValueError: A frequency that is not above 0 and at most 1.
        """
        rate, _, high = self.rate()
        total = 0.0
        for at in _bins(frequency).tolist():
            n = self.n_live.get(at, 0)
            total += self.n_false.get(at, 0) / n if n else rate
        return total, high * len(frequency)


@typed
def null_reference(
    name: str,
    frequencies: Sequence[Float[Tensor, " latent"]],
    specific: Sequence[Bool[Tensor, " latent"]],
) -> NullReference:
    """Pool the verdicts on one or several null crosscoders.

    Args:
        name: What the null is.
        frequencies: For each crosscoder the frequency of each latent; latents that never fire are left out.
        specific: For each crosscoder which latents were called model-specific.

    Returns:
        The reference.

    Raises:
        ValueError: No crosscoder, or lists of different lengths.
    """
    if not frequencies or len(frequencies) != len(specific):
        raise ValueError(
            f"null_reference: expected one mask per crosscoder and at least one, got {len(frequencies)} and "
            f"{len(specific)}."
        )
    live, false = {}, {}
    for frequency, mask in zip(frequencies, specific, strict=True):
        fires = frequency > 0
        for counts, which in ((live, fires), (false, fires & mask)):
            bins, n = torch.unique(_bins(frequency[which]), return_counts=True)
            for at, count in zip(bins.tolist(), n.tolist(), strict=True):
                counts[at] = counts.get(at, 0) + count
    return NullReference(name=name, n_crosscoders=len(frequencies), n_live=live, n_false=false)


def _bins(frequency: Tensor) -> Int[Tensor, " latent"]:
    if not bool(((frequency > 0) & (frequency <= 1)).all()):
        raise ValueError("NullReference: frequencies must lie above 0 and at most at 1.")
    return (frequency.double().log10() * _EDGES_PER_DECADE).floor().long()
