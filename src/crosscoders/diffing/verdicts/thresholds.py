"""Where the verdict draws its lines."""

from dataclasses import dataclass, fields
from typing import final


@final
@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The lines of `crosscoders.diffing.verdicts.judge`.

    Squared ratios compare squared strengths, so 0.1 means that the weaker source writes 0.32 of what the
    stronger one writes. The defaults marked "planted" are those that `python -m benchmarks.planted calibrate`
    found on seeds 0 to 4; they are scored on other seeds and other settings.

    Args:
        min_firings: Below it a latent is undecided.
        min_sequences: Likewise for the sequences in which it fires.
        absent: Largest squared ratio at which the weaker source counts as silent (planted).
        rescaled: Smallest squared ratio at which both sources count as equally strong: 0.8 of the strength.
        rotated: Largest cosine between the two sources' directions that counts as a rotation (planted).
        reused: Smallest cosine with a direction that both models have that counts as re-use (planted).
        partner: Smallest activation correlation with a latent of the other source that counts as the
            other half of a decoupled pair (planted).
        one_sided: Decoder-norm share beyond which the norms alone would call a latent exclusive; 0.833 is the
            field's 0.9 in its own convention (Minder et al. 2025).
        stable: Smallest mean correlation with the best match in other seeds.

    Raises:
        ValueError: A threshold outside (0, 1), counts below 2, or `absent` not below `rescaled`.
    """

    min_firings: int = 100
    min_sequences: int = 20
    absent: float = 0.13
    rescaled: float = 0.64
    rotated: float = 0.61
    reused: float = 0.72
    partner: float = 0.17
    one_sided: float = 5 / 6
    stable: float = 0.7

    def __post_init__(self) -> None:
        if min(self.min_firings, self.min_sequences) < 2:
            raise ValueError(
                "Thresholds: min_firings and min_sequences must be at least 2, got "
                f"{self.min_firings} and {self.min_sequences}."
            )
        for field in fields(self)[2:]:
            value = getattr(self, field.name)
            if not 0 < value < 1:
                raise ValueError(f"Thresholds: {field.name} must lie between 0 and 1, got {value}.")
        if not self.absent < self.rescaled:
            raise ValueError(f"Thresholds: absent={self.absent} must lie below rescaled={self.rescaled}.")
