"""How long, how fast and how often: the numbers of a training run."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from crosscoders._io import check_keys
from crosscoders._typing import typed
from crosscoders.kernels.dispatch import BACKENDS
from crosscoders.training.schedules import part_of_run

_PRECISIONS = ("float32", "bfloat16")


@final
@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Numbers of a training run; intervals of 0 mean never.

    Args:
        lr: Peak learning rate of Adam.
        betas: Adam's decay rates.
        warmup_fraction: Part of the run over which the learning rate rises from 0.
        decay_fraction: Part of the run, at its end, over which it falls to 0.
        warmup_tokens: Length of the warm-up in tokens, in place of `warmup_fraction`; the same whatever the
            length of the run.
        decay_tokens: Length of the decay in tokens, in place of `decay_fraction`.
        max_grad_norm: Gradients are clipped to this norm; None for no clipping.
        precision: "bfloat16" runs matrix products in bfloat16; weights and sums stay as they are.
        backend: Kernels of the step, see `kernels.choose_backend`; "auto" takes the fastest that applies.
        total_tokens: Length of the run; None takes it from the data, if they know it.
        dead_after_tokens: A latent silent for this long is dead; None for min(10M, 5% of the run).
        log_every_steps: Interval of metrics and of callbacks' displays.
        evaluate_every_steps: Interval of evaluations.
        checkpoint_every_steps: Interval of checkpoints.
        checkpoints_kept: Newest checkpoints to keep; older ones are removed, but for milestones.
        milestone_every_steps: Checkpoints at multiples of this many steps are never removed.
        calibration_batches: Last batches from which an inference threshold is calibrated.

    Raises:
        ValueError: A number out of range, a schedule longer than `total_tokens`, or milestones at steps that
            have no checkpoint.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_fraction: float = 0.05
    decay_fraction: float = 0.2
    warmup_tokens: int | None = None
    decay_tokens: int | None = None
    max_grad_norm: float | None = 1.0
    precision: str = "float32"
    backend: str = "auto"
    total_tokens: int | None = None
    dead_after_tokens: int | None = None
    log_every_steps: int = 50
    evaluate_every_steps: int = 0
    checkpoint_every_steps: int = 0
    checkpoints_kept: int = 2
    milestone_every_steps: int = 0
    calibration_batches: int = 32

    def __post_init__(self) -> None:
        _require(math.isfinite(self.lr) and self.lr > 0, "lr must be finite and positive", self.lr)
        _require(all(0 <= beta < 1 for beta in self.betas), "betas must be in [0, 1)", self.betas)
        for name in ("warmup_fraction", "decay_fraction"):
            _require(0 <= getattr(self, name) <= 1, f"{name} must be in [0, 1]", getattr(self, name))
        limit = self.max_grad_norm
        _require(
            limit is None or (math.isfinite(limit) and limit > 0),
            "max_grad_norm must be None or positive",
            limit,
        )
        _require(self.backend in BACKENDS, f"backend must be one of {BACKENDS}", self.backend)
        _require(self.precision in _PRECISIONS, f"precision must be one of {_PRECISIONS}", self.precision)
        for name in ("total_tokens", "dead_after_tokens"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name} must be None or at least 1", value)
        for name in ("calibration_batches", "checkpoints_kept"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name))
        self._check_schedule()
        self._check_intervals()

    def _check_schedule(self) -> None:
        for name in ("warmup_tokens", "decay_tokens"):
            value = getattr(self, name)
            _require(value is None or value >= 0, f"{name} must be None or at least 0", value)
        if self.total_tokens is not None:
            self.schedule_fractions(self.total_tokens)

    def _check_intervals(self) -> None:
        names = ("log_every_steps", "evaluate_every_steps", "checkpoint_every_steps", "milestone_every_steps")
        for name in names:
            _require(getattr(self, name) >= 0, f"{name} must not be negative", getattr(self, name))
        every, milestone = self.checkpoint_every_steps, self.milestone_every_steps
        _require(
            milestone == 0 or (every > 0 and milestone % every == 0),
            f"milestone_every_steps must be 0 or a multiple of checkpoint_every_steps={every}",
            milestone,
        )

    @typed
    def schedule_fractions(self, total_tokens: int) -> tuple[float, float]:
        """Parts of a run that are warm-up and decay; what is given in tokens goes before the fractions.

        Args:
            total_tokens: Length of the run.

        Returns:
            Fractions of warm-up and decay, each in [0, 1].

        Raises:
            ValueError: The warm-up or the decay is longer than the run.
        """
        found = []
        for name in ("warmup", "decay"):
            tokens, fraction = getattr(self, f"{name}_tokens"), getattr(self, f"{name}_fraction")
            if tokens is not None:
                fraction = part_of_run(tokens, total_tokens=total_tokens, name=f"{name}_tokens")
            found.append(fraction)
        return found[0], found[1]

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON-ready dict; `from_dict` inverts it."""
        return {**dataclasses.asdict(self), "betas": list(self.betas)}

    @classmethod
    @typed
    def from_dict(cls, data: Mapping[str, Any]) -> "TrainerConfig":
        """Build a config from some or all of its fields.

        Args:
            data: Values by field name; the rest keep their defaults.

        Raises:
            ValueError: A key is unknown or a value is out of range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        check_keys("TrainerConfig", data, known=known, required=())
        values = dict(data)
        if "betas" in values:
            values["betas"] = tuple(values["betas"])
        return cls(**values)


def _require(condition: bool, expectation: str, got: object) -> None:
    if not condition:
        raise ValueError(f"TrainerConfig: {expectation}, got {got!r}.")
