"""The conformance checks accept what the library ships and see what is broken."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from crosscoders.activation_fns import ActivationFn, ActivationModule
from crosscoders.losses import LossTerm
from crosscoders.testing import check_activation_fn, check_trainer
from crosscoders.training import Callback, History, StepReport, Trainer
from tests.core.toy import ACTIVATION_FNS, OBJECTIVES, kind_of
from tests.training.toy_run import toy_batches, toy_trainer

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("activation_fn", ACTIVATION_FNS, ids=kind_of)
def test_shipped_activation_functions_conform(activation_fn: ActivationFn) -> None:
    check_activation_fn(activation_fn, compile_backend=None)


_COMPILE = """
from crosscoders.testing import check_activation_fn
from tests.core.toy import ACTIVATION_FNS
for activation_fn in ACTIVATION_FNS:
    check_activation_fn(activation_fn)
"""


@pytest.mark.slow
def test_shipped_activation_functions_compile() -> None:
    """In a process of its own: the import hook of this one also checks dataclasses while dynamo traces."""
    paths = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", _COMPILE], env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(("activation_fn", "objective"), OBJECTIVES, ids=kind_of)
def test_the_shipped_trainer_conforms(activation_fn: ActivationFn, objective: list[LossTerm]) -> None:
    def make() -> Trainer:
        return toy_trainer(activation_fn=activation_fn, objective=objective, callbacks=[History()])

    check_trainer(make, toy_batches(6))


class Broken(ActivationModule):
    """Calls the function it was made with."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, pre_acts: Tensor, selection_scale: Tensor) -> Tensor:
        return self.function(pre_acts)


@dataclass(frozen=True, kw_only=True)
class BrokenFn(ActivationFn):
    kind: ClassVar[str] = "broken_for_a_test"
    how: str

    def build(self, n_latents: int) -> ActivationModule:
        functions: dict[str, Callable[[Tensor], Tensor]] = {
            "negative": lambda x: x,
            "no gradient": lambda x: x.detach().relu() + 0 * x,
            "the batch": lambda x: x.relu() * (x > x.mean()),
            "shape": lambda x: x.relu()[:, 1:],
            "dtype": lambda x: x.relu().bfloat16(),
        }
        return Broken(functions[self.how])


@pytest.mark.parametrize("how", ["negative", "no gradient", "the batch", "shape", "dtype"])
def test_broken_activation_functions_are_seen(how: str) -> None:
    with pytest.raises(AssertionError, match=how):
        check_activation_fn(BrokenFn(how=how), compile_backend=None)


class Tamper(Callback):
    """Writes past PyTorch's version counters."""

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        trainer.crosscoder.W_dec.data.mul_(1.5)


class Forgetful(Trainer):
    """Uses its own count of steps, which no checkpoint holds."""

    count = 0

    def after_optimizer_step(self) -> None:
        self.count += 1
        self.crosscoder.b_dec.add_(0.01 * self.count)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"callbacks": [Tamper()]}, "Tamper changes"), ({"cls": Forgetful}, "resumed run")],
)
def test_broken_trainers_are_seen(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_trainer(lambda: toy_trainer(**options), toy_batches(6))


def test_gradients_that_miss_a_parameter_are_seen() -> None:
    def make() -> Trainer:
        trainer = toy_trainer()
        trainer.crosscoder.b_dec.requires_grad_(False)
        return trainer

    with pytest.raises(AssertionError, match="b_dec"):
        check_trainer(make, toy_batches(6))
    assert torch.is_grad_enabled()
