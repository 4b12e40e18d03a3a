"""How long, how fast and how often: the numbers of a training run."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from crosscoders._io import check_keys
from crosscoders._typing import typed
from crosscoders.kernels.dispatch import BACKENDS

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
        max_grad_norm: Gradients are clipped to this norm; None for no clipping.
        precision: "bfloat16" runs matrix products in bfloat16; weights and sums stay as they are.
        backend: Kernels of the step, see `kernels.choose_backend`; "auto" takes the fastest that applies.
        total_tokens: Length of the run; None takes it from the data, if they know it.
        dead_after_tokens: A latent silent for this long is dead; None for min(10M, 5% of the run).
        log_every_steps: Interval of metrics and of callbacks' displays.
        evaluate_every_steps: Interval of evaluations.
        checkpoint_every_steps: Interval of checkpoints.
        calibration_batches: Last batches from which an inference threshold is calibrated.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_fraction: float = 0.05
    decay_fraction: float = 0.2
    max_grad_norm: float | None = 1.0
    precision: str = "float32"
    backend: str = "auto"
    total_tokens: int | None = None
    dead_after_tokens: int | None = None
    log_every_steps: int = 50
    evaluate_every_steps: int = 0
    checkpoint_every_steps: int = 0
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
        for name in ("log_every_steps", "evaluate_every_steps", "checkpoint_every_steps"):
            _require(getattr(self, name) >= 0, f"{name} must not be negative", getattr(self, name))
        _require(
            self.calibration_batches >= 1, "calibration_batches must be at least 1", self.calibration_batches
        )

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
