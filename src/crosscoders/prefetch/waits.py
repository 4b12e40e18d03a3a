"""Who waited for whom, when batches are made in the background."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Waits:
    """Seconds that the two sides spent waiting for each other.

    The side that waits longer is the faster one; a run in which neither waits much is balanced.

    Args:
        trainer_seconds: Time in which the trainer had no batch to train on, the first window included.
        harvest_seconds: Time in which the harvest had nowhere to put its next batch.
        elapsed_seconds: Wall time from the begin of the first loop to the last batch given out.
    """

    trainer_seconds: float = 0.0
    harvest_seconds: float = 0.0
    elapsed_seconds: float = 0.0

    @property
    def trainer_fraction(self) -> float:
        """Share of the elapsed time in which the trainer waited; NaN before the first batch."""
        return _share(self.trainer_seconds, self.elapsed_seconds)

    @property
    def harvest_fraction(self) -> float:
        """Share of the elapsed time in which the harvest waited; NaN before the first batch."""
        return _share(self.harvest_seconds, self.elapsed_seconds)

    def __str__(self) -> str:
        if not self.elapsed_seconds:
            return "waiting: not begun"
        return f"waiting: trainer {self.trainer_fraction:.0%}, harvest {self.harvest_fraction:.0%}"


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
