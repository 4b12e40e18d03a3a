"""Conformance checks for your own activation functions and trainers; call them from a test.

Each raises AssertionError naming the property that fails.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.activation_fns.base import ActivationFn, ActivationModule, activation_fn_from_dict
from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.losses import LossContext
from crosscoders.training.callbacks import Callback
from crosscoders.training.report import StepReport
from crosscoders.training.trainer import Trainer

__all__ = ["check_activation_fn", "check_trainer"]


@typed
def check_activation_fn(
    activation_fn: ActivationFn, *, n_latents: int = 32, compile_backend: str | None = "eager"
) -> None:
    """Check what the library relies on in an activation function.

    JSON round trip; shape, dtype and sign of the latents; gradients to pre-activations and own parameters;
    `set_progress` a pure function; eval mode deterministic and independent of the batch; state-dict round
    trip; works under torch.compile.

    Args:
        activation_fn: The spec to check.
        n_latents: Number of latents to build it for.
        compile_backend: Backend for torch.compile; None skips that check, which takes seconds.

    Raises:
        AssertionError: A property fails.
    """
    data = json.loads(json.dumps(activation_fn.to_dict()))
    _require(activation_fn_from_dict(data) == activation_fn, "the spec does not survive a JSON round trip")
    _require(hash(activation_fn) == hash(activation_fn_from_dict(data)), "equal specs hash differently")
    for dtype in (torch.float32, torch.float64):
        module, pre_acts = activation_fn.build(n_latents).to(dtype), _pre_acts(n_latents, dtype=dtype)
        scale = torch.linspace(0.5, 2.0, n_latents, dtype=dtype)
        _check_output(activation_fn, module.train(), pre_acts=pre_acts, scale=scale)
        _check_gradients(module, pre_acts=pre_acts, scale=scale)
        _check_progress(module, pre_acts=pre_acts, scale=scale)
        _check_inference(module, pre_acts=pre_acts, scale=scale)
        fresh = activation_fn.build(n_latents).to(dtype).eval()
        fresh.load_state_dict(module.state_dict(), strict=True)
        same = torch.equal(_dense(fresh(pre_acts, scale)), _dense(module(pre_acts, scale)))
        _require(same, "a module with the same state dict gives other latents")
    if compile_backend is not None:
        compiled = torch.compile(module, backend=compile_backend)
        same = torch.equal(_dense(compiled(pre_acts, scale)), _dense(module(pre_acts, scale)))
        _require(same, "the compiled module gives other latents")


@typed
def check_trainer(make: Callable[[], Trainer], batches: Sequence[Float[Tensor, "_ width"]]) -> None:
    """Check what the library promises of a trainer, for a subclass or with your own callbacks.

    Gradients reach every parameter; logged total equals the weighted sum of its terms; each callback leaves
    every parameter and buffer bit-identical; two runs are bit-identical, with and without observers; a run
    resumed from its middle ends on the same bits.

    Args:
        make: Builds a new trainer, each time with the same weights, without a checkpoint folder.
        batches: At least four batches.

    Raises:
        AssertionError: A property fails.
    """
    _require(len(batches) >= 4, f"expected at least 4 batches, got {len(batches)}")
    _check_gradient_reach(make(), batches)
    plain = make()
    plain.callbacks = ()
    plain.fit(batches)
    expected = _bits(plain)
    observed = make()
    observed.config = dataclasses.replace(observed.config, log_every_steps=1)
    observed.callbacks = _bracketed(observed.callbacks)
    observed.fit(batches)
    _require(_same(_bits(observed), expected), "logging or callbacks change the weights")
    with tempfile.TemporaryDirectory() as folder:
        resumed = _interrupted_then_resumed(make, batches, folder=Path(folder))
    _require(_same(_bits(resumed), expected), "a resumed run ends on other weights")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _dense(latents: Tensor | SparseLatents) -> Tensor:
    return latents if isinstance(latents, Tensor) else latents.to_dense()


def _pre_acts(n_latents: int, *, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, n_latents, generator=generator, dtype=dtype)


def _check_output(
    activation_fn: ActivationFn, module: ActivationModule, *, pre_acts: Tensor, scale: Tensor
) -> None:
    latents = _dense(module(pre_acts, scale))
    _require(
        latents.shape == pre_acts.shape, f"latents have shape {latents.shape}, expected {pre_acts.shape}"
    )
    _require(latents.dtype == pre_acts.dtype, f"latents have dtype {latents.dtype}, not {pre_acts.dtype}")
    _require(latents.device == pre_acts.device, f"latents are on {latents.device}, not {pre_acts.device}")
    _require(bool(latents.isfinite().all()), "latents are not finite")
    if activation_fn.is_nonnegative:
        _require(
            bool((latents >= 0).all()), "latents are negative; if that is meant, set is_nonnegative = False"
        )


def _check_gradients(module: ActivationModule, *, pre_acts: Tensor, scale: Tensor) -> None:
    leaf = pre_acts.clone().requires_grad_()
    _dense(module(leaf, scale)).square().sum().backward()
    _require(leaf.grad is not None and bool(leaf.grad.any()), "no gradient reaches the pre-activations")
    for name, parameter in module.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        _require(reached, f"no gradient reaches the parameter {name!r}")


def _check_progress(module: ActivationModule, *, pre_acts: Tensor, scale: Tensor) -> None:
    results = []
    for fraction in (0.3, 1.0, 0.3):
        module.set_progress(fraction)
        results.append(_dense(module(pre_acts, scale)))
    _require(torch.equal(results[0], results[2]), "set_progress depends on what was set before")
    module.set_progress(1.0)


def _check_inference(module: ActivationModule, *, pre_acts: Tensor, scale: Tensor) -> None:
    if module.needs_calibration:
        module.calibrate(torch.stack([module.calibration_score(pre_acts, scale)]))
    module.eval()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    whole = _dense(module(pre_acts, scale))
    alone = torch.cat([_dense(module(row[None], scale)) for row in pre_acts])
    _require(torch.equal(whole, alone), "in eval mode a token's latents depend on the rest of the batch")
    _require(_same(state, dict(module.state_dict())), "inference changes the module's state")


def _check_gradient_reach(trainer: Trainer, batches: Sequence[Tensor]) -> None:
    mask = torch.zeros(trainer.crosscoder.n_latents, dtype=torch.bool)
    mask[::2] = True
    crosscoder = trainer.crosscoder.train()
    losses = trainer.compute_losses(crosscoder(batches[0]), LossContext(progress=0.5, step=0, dead_mask=mask))
    losses.total.backward()
    for name, parameter in crosscoder.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        _require(reached, f"no gradient reaches the parameter {name!r}")


def _bits(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.crosscoder.state_dict().items()}


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class _Bracket(Callback):
    """Stands before and after another callback and compares the weights bit by bit."""

    def __init__(self, around: str) -> None:
        self.around = around
        self.before: dict[str, Tensor] | None = None

    def _see(self, trainer: Trainer) -> None:
        if self.before is None:
            self.before = _bits(trainer)
            return
        _require(_same(self.before, _bits(trainer)), f"{self.around} changes a parameter or buffer")
        self.before = None

    def on_fit_start(self, trainer: Trainer) -> None:
        self._see(trainer)

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        parts = [term.weight * term.value for term in report.losses.terms.values()]
        total = float(torch.stack(parts).sum())
        logged = report.metrics["loss"] if report.metrics is not None else total
        _require(logged == total, f"the logged loss {logged} is not the weighted sum {total} of its terms")
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
    make: Callable[[], Trainer], batches: Sequence[Tensor], *, folder: Path
) -> Trainer:
    middle = len(batches) // 2
    first, second = make(), make()
    for trainer in (first, second):
        trainer.config = dataclasses.replace(trainer.config, checkpoint_every_steps=middle)
        trainer.checkpoint_dir = folder
    first.callbacks, second.callbacks = (_Interrupt(middle + 1),), ()
    try:
        first.fit(batches)
    except KeyboardInterrupt:
        second.resume(folder)
        second.fit(batches)
        return second
    raise AssertionError(f"fit ended before step {middle + 1} of {len(batches)} batches")
