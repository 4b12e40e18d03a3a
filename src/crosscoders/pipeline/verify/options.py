"""What a verification does, and how much of it."""

from dataclasses import dataclass, field
from typing import final

from crosscoders._typing import typed
from crosscoders.diffing.planted.spike_in import SpikeIn
from crosscoders.diffing.verdicts import Thresholds

# Of the mean activation norm: about that of a feature in a planted world, where 8 are on at a time. A typical
# latent of the bundled run writes 0.08, and plants that weak got no latent at any rate; 0.16 did at 2% only.
_PLANT_STRENGTH = 1 / 3


@final
@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """How a run is verified.

    Args:
        n_seeds: Crosscoders of the run's own pair, the run's own among them; 1 leaves stability unmeasured.
        n_null_seeds: Crosscoders of each null pair; 0 leaves nulls out.
        self_diff: Whether the base against itself, with directions of its own in each source, is a null too.
        spike_in: Features to plant into the run's own activations, by default of a third of the mean norm;
            None leaves power unmeasured.
        causal_tokens: Held-out tokens of each kind of text for the causal check; 0 leaves it out.
        n_controls: Random sets of each kind in the causal check.
        thresholds: Where the verdict draws its lines.
        seed: Seed of everything random in the verification.

    Raises:
        ValueError: A count that is negative, or no seed at all.
    """

    n_seeds: int = 3
    n_null_seeds: int = 3
    self_diff: bool = True
    spike_in: SpikeIn | None = field(default_factory=lambda: SpikeIn(strength=_PLANT_STRENGTH))
    causal_tokens: int = 10_000
    n_controls: int = 5
    thresholds: Thresholds = field(default_factory=Thresholds)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_seeds < 1:
            raise ValueError(f"VerifyOptions: n_seeds must be at least 1, got {self.n_seeds}.")
        for name in ("n_null_seeds", "causal_tokens", "n_controls"):
            if getattr(self, name) < 0:
                raise ValueError(f"VerifyOptions: {name} must not be negative, got {getattr(self, name)}.")

    @classmethod
    @typed
    def short(cls, *, seed: int = 0) -> "VerifyOptions":
        """One crosscoder of each: the run's own, one of the null pair, one with plants; no seeds compared.

        The causal check reads less text and draws fewer controls.

        Args:
            seed: Seed of everything random in the verification.
        """
        return cls(n_seeds=1, n_null_seeds=1, self_diff=False, causal_tokens=2_000, n_controls=2, seed=seed)
