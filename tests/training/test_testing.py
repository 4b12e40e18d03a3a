"""The conformance checks accept what the library ships and see what is broken."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from crosscoders.activation_fns import ActivationFn, ActivationModule
from crosscoders.kernels import SparseLatents
from crosscoders.kernels.ops import batch_topk_indices, row_topk_indices
from crosscoders.kernels.step import Selection
from crosscoders.losses import LossTerm
from crosscoders.testing import check_activation_fn, check_trainer
from crosscoders.training import Callback, History, StepReport, Trainer
from tests.core.toy import ACTIVATION_FNS, OBJECTIVES, kind_of
from tests.training.check_messages import error_of, never_raised
from tests.training.toy_run import toy_batches, toy_trainer

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("activation_fn", ACTIVATION_FNS, ids=kind_of)
def test_shipped_activation_functions_conform(activation_fn: ActivationFn) -> None:
    check_activation_fn(activation_fn, compile_backend=None)


_COMPILE = """
from crosscoders.testing import check_activation_fn
from tests.core.toy import ACTIVATION_FNS
from tests.training.check_messages import error_of
from tests.training.test_testing import DoublesWhenCompiled
for activation_fn in ACTIVATION_FNS:
    check_activation_fn(activation_fn)
assert "compiled" in error_of(lambda: check_activation_fn(DoublesWhenCompiled()))
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
    """Calls a function with itself and the pre-activations."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.count = 0
        self.progress = 1.0
        self.own = torch.nn.Parameter(torch.tensor(0.5))
        self.register_buffer("seen", torch.tensor(0.0))

    def set_progress(self, fraction: float) -> None:
        self.progress = fraction
        self.count += 1

    def forward(self, pre_acts: Tensor, selection_scale: Tensor) -> Any:
        return self.function(self, pre_acts)


def unordered(module: Broken, x: Tensor) -> SparseLatents:
    sparse = SparseLatents.from_dense(x.relu() + 0 * module.own)
    return replace(sparse, values=sparse.values.flip(0), indices=sparse.indices.flip(0))


def counting(module: Broken, x: Tensor) -> Tensor:
    module.seen += 1
    return x.relu() * module.own


def only_in_eval(module: Broken, x: Tensor) -> Tensor:
    return (x.relu() if module.training else x.relu_()) * module.own


def private_state(module: Broken, x: Tensor) -> Tensor:
    """Scales by how often `set_progress` was called on this very object."""
    return x.relu() * module.own * (1.0 if module.training else 1.0 + module.count)


# What is wrong, and what the check says of it.
BROKEN: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "shape": (lambda m, x: x.relu()[:, 1:], "latents have shape"),
    "dtype": (lambda m, x: x.relu().bfloat16(), "latents have dtype"),
    "device": (lambda m, x: x.relu().to("meta"), "latents are on device"),
    "infinite": (lambda m, x: x.relu() / x.relu().amax(), "latents are not finite"),
    "negative": (lambda m, x: x, "latents are negative"),
    "order": (unordered, "sparse entries are not in order"),
    "no gradient": (lambda m, x: x.detach().relu() * m.own, "no gradient reaches the pre-activations"),
    "no graph": (lambda m, x: x.detach().relu(), "no gradient reaches the pre-activations"),
    "in place": (lambda m, x: x.relu_() * m.own, "forward changes the pre-activations or the scale"),
    "in place in eval": (only_in_eval, "forward changes the pre-activations or the scale"),
    "idle parameter": (lambda m, x: x.relu(), "no gradient reaches the parameter 'own'"),
    "memory": (lambda m, x: x.relu() * m.own * (1 + m.count), "set_progress depends on what was set before"),
    "the batch": (lambda m, x: x.relu() * m.own * (x > x.mean()), "depend on the rest of the batch"),
    "counting": (counting, "inference changes the module's state"),
    "private state": (private_state, "same state dict gives other latents"),
}


@dataclass(frozen=True, kw_only=True)
class BrokenFn(ActivationFn):
    kind: ClassVar[str] = "broken_for_a_test"
    how: str

    def build(self, n_latents: int) -> ActivationModule:
        return Broken(BROKEN[self.how][0])


@pytest.mark.parametrize("how", sorted(BROKEN))
def test_broken_activation_functions_are_seen(how: str) -> None:
    with pytest.raises(AssertionError, match=BROKEN[how][1]):
        check_activation_fn(BrokenFn(how=how), compile_backend=None)


class _Doubles(ActivationModule):
    def forward(self, pre_acts: Tensor, selection_scale: Tensor) -> Tensor:
        return pre_acts.relu() * (2.0 if torch.compiler.is_compiling() else 1.0)


@dataclass(frozen=True, kw_only=True)
class DoublesWhenCompiled(ActivationFn):
    """Seen by the compilation test alone."""

    kind: ClassVar[str] = "doubles_when_compiled"

    def build(self, n_latents: int) -> ActivationModule:
        return _Doubles()


@dataclass(frozen=True, kw_only=True)
class Forgets(BrokenFn):
    """Its parameter comes back from JSON as a list."""

    kind: ClassVar[str] = "forgets_for_a_test"
    pair: tuple[int, int] = (1, 2)


@dataclass(frozen=True, kw_only=True)
class HashedByPlace(BrokenFn):
    kind: ClassVar[str] = "hashed_by_place_for_a_test"

    def __hash__(self) -> int:
        return id(self)


@dataclass(frozen=True, kw_only=True)
class Rounds(BrokenFn):
    """Is another one each time it is built."""

    kind: ClassVar[str] = "rounds_for_a_test"
    factor: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", self.factor / 2)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Forgets, "does not survive a JSON round trip: .* pair"),
        (Rounds, "does not survive a JSON round trip: it is"),
        (HashedByPlace, "hash differently"),
    ],
)
def test_broken_specs_are_seen(cls: type[BrokenFn], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_activation_fn(cls(how="negative"), compile_backend=None)


class Selecting(ActivationModule):
    """What a module that names its selection may get wrong."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("n_batches", torch.tensor(0.0))

    @property
    def selection(self) -> Selection:
        return Selection(k=2, per_row=False)

    def track(self, smallest_score: Tensor) -> None:
        if self.how != "tracks in forward":
            self.n_batches += 1

    def forward(self, pre_acts: Tensor, selection_scale: Tensor) -> Any:
        select = row_topk_indices if self.how == "other latents" else batch_topk_indices
        if self.how == "tracks in forward":
            self.n_batches += 1
        if self.how == "another score":
            self.track(pre_acts.detach().max())
        return SparseLatents.gather(pre_acts, select(pre_acts.detach() * selection_scale, 2))


@dataclass(frozen=True, kw_only=True)
class SelectingFn(ActivationFn):
    kind: ClassVar[str] = "selecting_for_a_test"
    how: str

    def build(self, n_latents: int) -> ActivationModule:
        return Selecting(self.how)


SELECTING = [
    ("other latents", "does not keep what its selection says"),
    ("tracks in forward", "changes state besides calling track"),
    ("another score", "expected .* the smallest selected score"),
    ("never tracks", r"calls track with \[\]"),
]


@pytest.mark.parametrize(("how", "message"), SELECTING)
def test_a_selection_that_forward_does_not_make_is_seen(how: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_activation_fn(SelectingFn(how=how), compile_backend=None)


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


class Periodic(Trainer):
    """Does something every third step by a count of its own, which no checkpoint holds."""

    count = 0

    def after_optimizer_step(self) -> None:
        self.count += 1
        if self.count % 3 == 0:
            self.crosscoder.b_dec.add_(0.01)


class Careless(Trainer):
    """Stores what it counts, and does not take it back."""

    count = 0

    def after_optimizer_step(self) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "mine": {"counts": [self.count]}}


class KeepsFunctions(Trainer):
    """Its state cannot even be written."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "mine": lambda: None}


class Global(Trainer):
    """Draws from the global generator."""

    def after_optimizer_step(self) -> None:
        self.crosscoder.b_dec.add_(0.01 * torch.randn(()))


class TellsAnother(Trainer):
    """Logs another number than it minimizes."""

    def training_step(self, batch: Tensor) -> StepReport:
        report = super().training_step(batch)
        if report.metrics is None:
            return report
        return replace(report, metrics={**report.metrics, "loss": report.metrics["loss"] + 1.0})


class Drifts(Trainer):
    """Its evaluation trains, past the version counters."""

    def evaluate(self) -> dict[str, float]:
        self.crosscoder.W_dec.data.mul_(0.999)
        return {"n": 1.0}


class KeepsObjects(Trainer):
    """Its state holds what a checkpoint cannot."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "mine": Path("x")}


class Talkative(Trainer):
    """Its summary is no JSON."""

    def summary(self) -> dict[str, Any]:
        return {**super().summary(), "weights": self.crosscoder.W_enc}


class Silent(Trainer):
    """Logs nothing."""

    def training_step(self, batch: Tensor) -> StepReport:
        return replace(super().training_step(batch), metrics=None)


class Short(Trainer):
    """Stops after two steps."""

    def after_optimizer_step(self) -> None:
        if self.step == 1:
            self.request_stop("two steps are enough")


def with_frozen_bias() -> Trainer:
    trainer = toy_trainer()
    trainer.crosscoder.b_dec.requires_grad_(False)
    return trainer


BROKEN_TRAINERS: list[tuple[Callable[[], Trainer], str]] = [
    (with_frozen_bias, "no gradient reaches the parameter 'b_dec'"),
    (lambda: toy_trainer(callbacks=[Tamper()]), "Tamper changes a parameter"),
    (lambda: toy_trainer(cls=Forgetful), "a resumed run ends on other weights"),
    (lambda: toy_trainer(cls=Periodic), "a resumed run ends on other weights"),
    (lambda: toy_trainer(cls=Careless), r"a resumed run ends with another \['mine'\] in its state"),
    (lambda: toy_trainer(cls=KeepsFunctions), "state_dict holds more than"),
    (lambda: toy_trainer(cls=Global), "two runs end on different weights"),
    (lambda: toy_trainer(cls=TellsAnother), "the logged loss"),
    (lambda: toy_trainer(cls=Silent), "a logging step has no metrics"),
    (lambda: toy_trainer(cls=Drifts), "logging, evaluation or callbacks change"),
    (lambda: toy_trainer(cls=KeepsObjects), "state_dict holds more than"),
    (lambda: toy_trainer(cls=Talkative), "summary cannot be written"),
    (lambda: toy_trainer(cls=Short), "fit ended before step 4 of 6"),
]


@pytest.mark.parametrize(("make", "message"), BROKEN_TRAINERS, ids=[text for _, text in BROKEN_TRAINERS])
def test_broken_trainers_are_seen(make: Callable[[], Trainer], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_trainer(make, toy_batches(6))
    assert torch.is_grad_enabled()


def test_each_message_of_the_checks_has_something_that_earns_it() -> None:
    broken = [*(BrokenFn(how=how) for how in BROKEN), Forgets(how="shape"), HashedByPlace(how="shape")]
    broken += [Rounds(how="shape"), *(SelectingFn(how=how) for how, _ in SELECTING)]
    errors = [error_of(lambda fn=fn: check_activation_fn(fn, compile_backend=None)) for fn in broken]
    assert never_raised(check_activation_fn, errors) == ["the compiled module gives other latents"]
    errors = [error_of(lambda make=make: check_trainer(make, toy_batches(6))) for make, _ in BROKEN_TRAINERS]
    errors.append(error_of(lambda: check_trainer(toy_trainer, toy_batches(3))))
    one = toy_trainer()
    errors.append(error_of(lambda: check_trainer(lambda: one, toy_batches(6))))
    assert never_raised(check_trainer, errors) == []
