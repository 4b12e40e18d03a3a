"""What could have been found at all: planted features that verification called model-specific."""

from dataclasses import dataclass
from typing import final

from crosscoders._typing import typed
from crosscoders.bootstrap import wilson_interval


@final
@dataclass(frozen=True, kw_only=True)
class PowerAtRate:
    """Plants of one base rate.

    Args:
        rate: Share of tokens on which each is on.
        n_planted: Plants.
        n_recovered: Those that some latent follows.
        n_specific: Those whose latent was called model-specific.
    """

    rate: float
    n_planted: int
    n_recovered: int
    n_specific: int

    @property
    def power(self) -> float:
        """Share of the plants that were found and called model-specific."""
        return self.n_specific / self.n_planted

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the power."""
        return wilson_interval(self.n_specific, self.n_planted)


@final
@dataclass(frozen=True, kw_only=True)
class Power:
    """Power per base rate on the user's own activations.

    Args:
        rates: From frequent to rare, of plants in random directions: what verification should find.
        known_direction_specific: Plants in directions of the crosscoder's own decoder that were called
            model-specific, wrongly: they re-use a direction that both models have.
        known_direction_planted: Those plants in all.
        strength: Mean norm of a plant over the mean activation norm of its source.
        typical_strength: The same of what a typical latent writes where it fires, if it was measured.

    Raises:
        ValueError: Counts that contradict each other.
    """

    rates: tuple[PowerAtRate, ...]
    known_direction_specific: int
    known_direction_planted: int
    strength: float
    typical_strength: float | None = None

    def __post_init__(self) -> None:
        for at in self.rates:
            if not 0 <= at.n_specific <= at.n_recovered <= at.n_planted or at.n_planted == 0:
                raise ValueError(
                    "Power: expected 0 <= n_specific <= n_recovered <= n_planted with n_planted above 0, got "
                    f"{at}."
                )

    def sentence(self) -> str:
        """Such as "power 0.94 at 2%, 0.88 at 0.5%"."""
        if not self.rates:
            return "power not measured (nothing planted in a random direction)"
        return "power " + ", ".join(f"{at.power:.2f} at {100 * at.rate:g}%" for at in self.rates)


@typed
def power_lines(power: Power) -> list[str]:
    """The power in full, one line per base rate.

    Args:
        power: What was found.
    """
    typical = power.typical_strength
    beside = "" if typical is None else f"; a typical latent writes {typical:.2f}"
    lines = [f"Planted into these activations (mean norm {power.strength:.2f} of the source's own{beside}):"]
    for at in power.rates:
        low, high = at.interval
        lines.append(
            f"  {100 * at.rate:g}% of tokens: {at.n_specific} of {at.n_planted} called model-specific "
            f"({at.power:.2f}, 95% {low:.2f} to {high:.2f}); {at.n_recovered} have a latent"
        )
    if power.known_direction_planted:
        lines.append(
            f"  in known directions: {power.known_direction_specific} of {power.known_direction_planted} "
            "wrongly called model-specific"
        )
    return lines
