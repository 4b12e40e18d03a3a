"""The check of a trainer: your subclass, or the shipped one with your own terms and callbacks."""

import dataclasses
import io
import json
import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.losses import LossContext
from crosscoders.testing.requirement import copies, has_gradient, require, same_bits
from crosscoders.training.callbacks import Callback
from crosscoders.training.report import StepReport
from crosscoders.training.trainer import Trainer


@typed
def check_trainer(make: Callable[[], Trainer], batches: Sequence[Float[Tensor, "_ width"]]) -> None:
    """Check what the library promises of a trainer, for a subclass or with your own callbacks.

    Gradients reach every parameter; the logged total equals the weighted sum of its terms; each callback
    leaves every parameter and buffer bit-identical; two runs are bit-identical, with and without logging,
    evaluation and callbacks; a run resumed at its middle, or a step before it, ends on the same bits and in
    the same state; `state_dict` holds what a checkpoint can, and `summary` what JSON can.

    Args:
        make: Builds a new trainer, each time with the same weights, without a checkpoint folder.
        batches: At least four batches.

    Raises:
        AssertionError: A property fails.
    """
    require(len(batches) >= 4, f"expected at least 4 batches, got {len(batches)}")
    used, plain = make(), make()
    require(plain is not used, "make gives one trainer twice; it must build a new one each time")
    _check_gradient_reach(used, batches)
    plain = _fitted(plain, batches)
    expected = _bits(plain)
    require(same_bits(_bits(_fitted(make(), batches)), expected), "two runs end on different weights")
    _check_summary(plain)
    _check_state(plain)
    observed = make()
    observed.config = dataclasses.replace(observed.config, log_every_steps=1, evaluate_every_steps=1)
    observed.callbacks = (_LoggedTotal(), *_bracketed(observed.callbacks))
    observed.fit(batches)
    require(same_bits(_bits(observed), expected), "logging, evaluation or callbacks change the weights")
    for step in (len(batches) // 2, len(batches) // 2 - 1):  # no count of steps divides both
        with tempfile.TemporaryDirectory() as folder:
            resumed = _interrupted_then_resumed(make, batches, folder=Path(folder), step=step)
        require(same_bits(_bits(resumed), expected), "a resumed run ends on other weights")
        differing = _differing_keys(resumed.state_dict(), plain.state_dict())
        require(not differing, f"a resumed run ends with another {differing} in its state")


def _fitted(trainer: Trainer, batches: Sequence[Tensor]) -> Trainer:
    trainer.callbacks = ()
    trainer.fit(batches)
    return trainer


def _check_summary(trainer: Trainer) -> None:
    try:
        json.dumps(trainer.summary(), allow_nan=False)
    except (TypeError, ValueError) as err:
        raise AssertionError(f"summary cannot be written as JSON: {err}") from err


def _check_state(trainer: Trainer) -> None:
    """Through what a checkpoint does: written, and read without unpickling anything else."""
    file = io.BytesIO()
    try:
        torch.save(trainer.state_dict(), file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError) as err:
        raise AssertionError(
            f"state_dict holds more than tensors, numbers, strings, and lists and dicts of them: {err}"
        ) from err


def _differing_keys(state: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    keys = state.keys() | other.keys()
    return sorted(
        key for key in keys if key not in state or key not in other or not _same(state[key], other[key])
    )


def _same(value: Any, other: Any) -> bool:
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return torch.equal(value, other)
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        return value.keys() == other.keys() and all(_same(value[key], other[key]) for key in value)
    if isinstance(value, list | tuple) and isinstance(other, list | tuple):
        return len(value) == len(other) and all(map(_same, value, other))
    return type(value) is type(other) and value == other


def _check_gradient_reach(trainer: Trainer, batches: Sequence[Tensor]) -> None:
    crosscoder = trainer.crosscoder.train()
    mask = torch.zeros(crosscoder.n_latents, dtype=torch.bool, device=crosscoder.W_enc.device)
    mask[::2] = True
    context = LossContext(progress=0.5, step=0, dead_mask=mask)
    losses = trainer.compute_losses(crosscoder(batches[0].to(mask.device)), context)
    losses.total.backward()
    for name, parameter in crosscoder.named_parameters():
        require(has_gradient(parameter), f"no gradient reaches the parameter {name!r}")


def _bits(trainer: Trainer) -> dict[str, Tensor]:
    return copies(trainer.crosscoder.state_dict())


class _LoggedTotal(Callback):
    """Compares the logged loss with its terms."""

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        parts = [term.weight * term.value for term in report.losses.terms.values()]
        total = float(torch.stack(parts).sum())
        require(report.metrics is not None, "a logging step has no metrics")
        logged = (report.metrics or {})["loss"]
        require(logged == total, f"the logged loss {logged} is not the weighted sum {total} of its terms")


class _Bracket(Callback):
    """Stands before and after another callback and compares the weights bit by bit."""

    def __init__(self, around: str) -> None:
        self.around = around
        self.before: dict[str, Tensor] | None = None

    def _see(self, trainer: Trainer) -> None:
        if self.before is None:
            self.before = _bits(trainer)
            return
        require(same_bits(self.before, _bits(trainer)), f"{self.around} changes a parameter or buffer")
        self.before = None

    def on_fit_start(self, trainer: Trainer) -> None:
        self._see(trainer)

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        self._see(trainer)

    def on_evaluate(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self._see(trainer)

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        self._see(trainer)

    def on_fit_end(self, trainer: Trainer) -> None:
        self._see(trainer)


def _bracketed(callbacks: Sequence[Callback]) -> tuple[Callback, ...]:
    result: list[Callback] = []
    for callback in callbacks:
        bracket = _Bracket(type(callback).__name__)
        result += [bracket, callback, bracket]
    return tuple(result)


class _Interrupt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        if report.step == self.step:
            raise KeyboardInterrupt


def _interrupted_then_resumed(
    make: Callable[[], Trainer], batches: Sequence[Tensor], *, folder: Path, step: int
) -> Trainer:
    first, second = make(), make()
    for trainer in (first, second):
        trainer.config = dataclasses.replace(trainer.config, checkpoint_every_steps=step)
        trainer.checkpoint_dir = folder
    first.callbacks, second.callbacks = (_Interrupt(step + 1),), ()
    try:
        first.fit(batches)
    except KeyboardInterrupt:
        second.resume(folder)
        second.fit(batches)
        return second
    raise AssertionError(f"fit ended before step {step + 1} of {len(batches)} batches")
