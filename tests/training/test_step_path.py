"""Whatever the step without autograd does not know goes through autograd, and is obeyed there."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, final

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from crosscoders.activation_fns import ActivationFn, ActivationModule, BatchTopK, JumpReLU, ReLU, TopK
from crosscoders.crosscoder import Crosscoder, CrosscoderOutput
from crosscoders.errors import KernelUnavailableError
from crosscoders.kernels import dispatch
from crosscoders.losses import AuxK, LossBreakdown, LossContext, LossTerm, Reconstruction
from crosscoders.training import Callback, StepReport, Trainer
from tests.training.toy_run import Stream, same_bits, toy_batches, toy_trainer, weights

N_STEPS = 3
Made = tuple[Trainer, list[str]]
AUTOGRAD = "autograd over the library's functions, because "


class OwnOptimizer(Trainer):
    calls: list[str]

    def configure_optimizer(self) -> torch.optim.Optimizer:
        self.calls.append("configure_optimizer")
        return torch.optim.SGD(self.crosscoder.parameters(), lr=1e-3)


class OwnStep(Trainer):
    calls: list[str]

    def training_step(self, batch: Tensor) -> StepReport:
        self.calls.append("training_step")
        return super().training_step(batch)


class OwnLosses(Trainer):
    calls: list[str]

    def compute_losses(self, output: CrosscoderOutput, context: LossContext) -> LossBreakdown:
        self.calls.append("compute_losses")
        return super().compute_losses(output, context)


class Resampling(Trainer):
    calls: list[str]

    def after_optimizer_step(self) -> None:
        self.calls.append("after_optimizer_step")
        self.crosscoder.W_dec[:4].fill_(0.25)


class InheritedOverride(Resampling):
    pass


@final
@dataclass(frozen=True, kw_only=True)
class Squares(LossTerm):
    """A term that this library does not know."""

    name: ClassVar[str] = "squares"
    calls: ClassVar[list[str]] = []

    def value(self, output: CrosscoderOutput, crosscoder: Crosscoder, context: LossContext) -> Tensor:
        self.calls.append("value")
        return crosscoder.W_dec.square().sum()


@final
@dataclass(frozen=True, kw_only=True)
class HalfReLU(ActivationFn):
    """An activation function that this library does not know."""

    kind: ClassVar[str] = "test_half_relu"
    calls: ClassVar[list[str]] = []

    def build(self, n_latents: int) -> ActivationModule:
        return _HalfReLU()


class _HalfReLU(ActivationModule):
    def forward(self, pre_acts: Tensor, selection_scale: Tensor) -> Tensor:
        HalfReLU.calls.append("forward")
        return 0.5 * pre_acts.relu()


def overridden(cls: Any, **config: Any) -> Made:
    cls.calls = []
    return toy_trainer(cls=cls, config=config), cls.calls


def with_instance_attribute(**config: Any) -> Made:
    trainer, calls = toy_trainer(config=config), []
    original = trainer.compute_losses
    trainer.compute_losses = lambda *args: calls.append("losses") or original(*args)  # type: ignore[method-assign]
    return trainer, calls


def with_term(**config: Any) -> Made:
    Squares.calls.clear()
    return toy_trainer(objective=[Reconstruction(), Squares()], config=config), Squares.calls


def with_activation(**config: Any) -> Made:
    HalfReLU.calls.clear()
    return toy_trainer(activation_fn=HalfReLU(), config=config), HalfReLU.calls


def with_builtin(activation_fn: ActivationFn, **config: Any) -> Made:
    return toy_trainer(activation_fn=activation_fn, config=config), []


def with_frozen_bias(**config: Any) -> Made:
    trainer = toy_trainer(config=config)
    trainer.crosscoder.b_enc.requires_grad_(False)
    return trainer, []


def with_float64(**config: Any) -> Made:
    trainer = toy_trainer(config=config)
    trainer.crosscoder.double()
    return trainer, []


def with_hook(register: Callable[[Trainer, list[str]], Any], **config: Any) -> Made:
    trainer, calls = toy_trainer(config=config), []
    register(trainer, calls)
    return trainer, calls


def hear(calls: list[str]) -> Callable[..., None]:
    return lambda *args: calls.append("hook")


HOOKS: dict[str, Callable[[Trainer, list[str]], Any]] = {
    "forward": lambda t, calls: t.crosscoder.register_forward_hook(hear(calls)),
    "forward_pre": lambda t, calls: t.crosscoder.register_forward_pre_hook(hear(calls)),
    "of_a_part": lambda t, calls: t.crosscoder.activation.register_forward_hook(hear(calls)),
    "parameter": lambda t, calls: t.crosscoder.W_dec.register_hook(hear(calls)),
    "accumulated": lambda t, calls: t.crosscoder.W_enc.register_post_accumulate_grad_hook(hear(calls)),
    "optimizer_pre": lambda t, calls: t.optimizer.register_step_pre_hook(hear(calls)),
    "optimizer_post": lambda t, calls: t.optimizer.register_step_post_hook(hear(calls)),
}
ON_CROSSCODER = "hooks are registered on the crosscoder, a parameter or the optimizer"
CASES: dict[str, tuple[Callable[..., Made], str]] = {
    "configure_optimizer": (
        lambda **c: overridden(OwnOptimizer, **c),
        "OwnOptimizer overrides configure_optimizer",
    ),
    "training_step": (lambda **c: overridden(OwnStep, **c), "OwnStep overrides training_step"),
    "compute_losses": (lambda **c: overridden(OwnLosses, **c), "OwnLosses overrides compute_losses"),
    "resampling": (lambda **c: overridden(Resampling, **c), "Resampling overrides after_optimizer_step"),
    "inherited": (
        lambda **c: overridden(InheritedOverride, **c),
        "InheritedOverride overrides after_optimizer_step",
    ),
    "instance": (with_instance_attribute, "Trainer overrides compute_losses"),
    "term": (with_term, r"objective \['Reconstruction', 'Squares'\]"),
    "activation": (with_activation, "HalfReLU does not select a fixed number of latents"),
    "relu": (lambda **c: with_builtin(ReLU(), **c), "ReLU does not select a fixed number"),
    "jumprelu": (lambda **c: with_builtin(JumpReLU(), **c), "JumpReLU does not select a fixed number"),
    "frozen": (with_frozen_bias, "a parameter is frozen or not float32"),
    "float64": (with_float64, "a parameter is frozen or not float32"),
    **{
        f"hook_{name}": (lambda register=register, **c: with_hook(register, **c), ON_CROSSCODER)
        for name, register in HOOKS.items()
    },
}


def takes_autograd(trainer: Trainer) -> bool:
    """Whether the steps so far left a gradient behind, as only autograd does."""
    return trainer.crosscoder.W_dec.grad is not None


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_known_goes_through_autograd(case: str) -> None:
    make, reason = CASES[case]
    trainer, calls = make()
    with pytest.raises(AssertionError, match=AUTOGRAD + ".*" + reason):
        raise AssertionError(trainer.explain())
    trainer.fit(toy_batches(N_STEPS))
    assert takes_autograd(trainer)
    if case in ("frozen", "float64", "relu", "jumprelu"):
        return
    assert len(calls) >= (1 if case == "configure_optimizer" else N_STEPS)


@pytest.mark.parametrize("backend", ["cpu", "dense"])
@pytest.mark.parametrize("case", CASES)
def test_a_demand_that_cannot_be_met_raises_before_the_first_step(case: str, backend: str) -> None:
    make, reason = CASES[case]
    trainer, _ = make(backend=backend)
    before = weights(trainer.crosscoder)
    message = f"backend '{backend}' was asked for, but .*{reason}"
    stream = Stream(N_STEPS)
    with pytest.raises(KernelUnavailableError, match=message):
        trainer.fit(stream)
    assert stream.next_index == 0
    with pytest.raises(KernelUnavailableError, match=message):
        trainer.explain()
    assert trainer.step == 0
    assert same_bits(weights(trainer.crosscoder), before)


@pytest.mark.parametrize("case", [name for name in CASES if name != "float64"])
def test_asking_for_the_reference_always_works(case: str) -> None:
    trainer, _ = CASES[case][0](backend="reference")
    assert trainer.explain() == AUTOGRAD + "the config asks for backend 'reference'."
    trainer.fit(toy_batches(N_STEPS))
    assert takes_autograd(trainer)


def test_a_frozen_parameter_stays_and_the_rest_moves() -> None:
    trainer, _ = with_frozen_bias()
    before = weights(trainer.crosscoder)
    trainer.fit(toy_batches(N_STEPS))
    assert torch.equal(trainer.crosscoder.b_enc, before["b_enc"])
    assert not torch.equal(trainer.crosscoder.W_enc, before["W_enc"])


def test_resampled_weights_are_those_of_the_next_step() -> None:
    trainer, _ = overridden(Resampling)
    trainer.fit(toy_batches(N_STEPS))
    assert bool((trainer.crosscoder.W_dec[:4] == 0.25).all())


@pytest.mark.parametrize("objective", [[Reconstruction()], [AuxK(), Reconstruction()]], ids=len)
@pytest.mark.parametrize("activation_fn", [TopK(k=3), BatchTopK(k=3)], ids=lambda a: a.kind)
def test_a_plain_trainer_takes_no_autograd(activation_fn: ActivationFn, objective: list[LossTerm]) -> None:
    for backend in ("auto", "cpu", "dense"):
        trainer = toy_trainer(activation_fn=activation_fn, objective=objective, config={"backend": backend})
        assert not trainer.explain().startswith("autograd")
        trainer.fit(toy_batches(N_STEPS))
        assert not takes_autograd(trainer)


def test_overriding_evaluation_or_callbacks_costs_nothing() -> None:
    class Observed(Trainer):
        def evaluate(self) -> dict[str, float]:
            return {"one": 1.0}

    trainer = toy_trainer(cls=Observed, callbacks=[Callback()], config={"evaluate_every_steps": 1})
    trainer.fit(toy_batches(N_STEPS))
    assert not takes_autograd(trainer)
    assert trainer.last_evaluation == {"one": 1.0}


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_is_heard_from_the_step_after_it_was_registered(hook: str) -> None:
    calls: list[str] = []

    class Late(Callback):
        def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
            n_heard.append(len(calls))
            if report.step == 3:
                HOOKS[hook](trainer, calls)

    n_heard: list[int] = []
    trainer = toy_trainer(callbacks=[Late()])
    trainer.fit(toy_batches(6))
    assert n_heard[:3] == [0, 0, 0]
    assert 0 < n_heard[3] < n_heard[4] < n_heard[5]


def test_backward_hooks_of_modules_are_seen_too() -> None:
    for register in (nn.Module.register_full_backward_hook, nn.Module.register_full_backward_pre_hook):
        trainer = toy_trainer()
        handle = register(trainer.crosscoder, lambda *args: None)
        assert ON_CROSSCODER in trainer.explain()
        handle.remove()
        assert ON_CROSSCODER not in trainer.explain()


def test_a_late_hook_ends_a_run_that_demanded_kernels() -> None:
    class Late(Callback):
        def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
            if report.step == 2:
                trainer.crosscoder.register_forward_hook(lambda *args: None)

    trainer = toy_trainer(callbacks=[Late()], config={"backend": "cpu"})
    with pytest.raises(KernelUnavailableError, match=ON_CROSSCODER):
        trainer.fit(toy_batches(6))
    assert trainer.step == 2


def test_a_removed_hook_gives_way_again() -> None:
    trainer = toy_trainer()
    handles = [register(trainer, []) for register in HOOKS.values()]
    assert trainer.explain().startswith(AUTOGRAD)
    for handle in handles:
        handle.remove()
    assert "backend" in trainer.explain()


def test_explain_says_which_kernels_and_why() -> None:
    few, many = TopK(k=3), TopK(k=8)
    assert toy_trainer(activation_fn=few).explain() == (
        "backend 'cpu' (selection by NumPy, gathers by embedding_bag, Adam group by group), because k=3 lies "
        "below the break-even of about 7 latents per token."
    )
    assert toy_trainer(activation_fn=many).explain() == (
        "backend 'dense' (dense matrix products and PyTorch's fused Adam), because k=8 lies above the "
        "break-even of about 7 latents per token."
    )
    for backend in ("cpu", "dense"):
        trainer = toy_trainer(activation_fn=few, config={"backend": backend})
        assert trainer.explain() == f"backend '{backend}', as configured."
    low = toy_trainer(activation_fn=TopK(k=6), config={"precision": "bfloat16"})
    assert "'dense'" in low.explain()
    assert "about 5 latents" in low.explain()


def test_explaining_changes_nothing() -> None:
    asked, silent = toy_trainer(), toy_trainer()
    before = weights(asked.crosscoder)
    assert asked.explain() == asked.explain()
    assert same_bits(weights(asked.crosscoder), before)
    for trainer in (asked, silent):
        trainer.fit(toy_batches(N_STEPS))
    assert same_bits(weights(asked.crosscoder), weights(silent.crosscoder))


def test_triton_is_refused_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    trainer = toy_trainer(config={"backend": "triton"})
    with pytest.raises(KernelUnavailableError, match=r"'triton' was asked for, but .*; use backend='auto'"):
        trainer.fit(toy_batches(N_STEPS))
    assert trainer.step == 0


def test_the_choice_is_logged_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_announced", set())
    with caplog.at_level(logging.INFO, logger=dispatch.__name__):
        for _ in range(2):
            toy_trainer(activation_fn=TopK(k=3)).fit(toy_batches(N_STEPS))
    assert [record.getMessage() for record in caplog.records] == [
        f"kernels: {toy_trainer(activation_fn=TopK(k=3)).explain()}"
    ]


def test_gradients_of_autograd_reach_what_hooks_see() -> None:
    seen: list[Tensor] = []
    trainer = toy_trainer(activation_fn=TopK(k=3), config={"max_grad_norm": None})
    trainer.crosscoder.b_dec.register_hook(lambda grad: seen.append(grad.clone()))
    trainer.fit(toy_batches(1))
    state = trainer.optimizer.state[trainer.crosscoder.b_dec]
    assert_close(state["exp_avg"], 0.1 * seen[0])
