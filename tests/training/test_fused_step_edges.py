"""The step without autograd when something is changed, replaced or refused in the middle of a run."""

import math
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from crosscoders.activation_fns import TopK
from crosscoders.kernels import reference
from crosscoders.kernels.cpu import selection
from crosscoders.losses import Reconstruction
from crosscoders.training import Callback, StepReport, Trainer
from tests.training.test_fused_step import BACKENDS, Diary, one_step, stopped, successor
from tests.training.toy_run import N_STEPS, toy_batches, toy_trainer, weights


@pytest.mark.parametrize("backend", ["auto"])
def test_a_run_may_change_its_way_at_any_step(backend: str) -> None:
    heard: list[int] = []

    class Flip(Callback):
        """Registers a hook, which asks for autograd, after every other step."""

        def __init__(self) -> None:
            self.handle: Any = None

        def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
            if self.handle is None:
                hook = lambda *args: heard.append(trainer.step)  # noqa: E731
                self.handle = trainer.crosscoder.register_forward_pre_hook(hook)
            else:
                self.handle.remove()
                self.handle = None

    mixed = toy_trainer(callbacks=[Flip()])
    mixed.fit(toy_batches())
    assert heard[: N_STEPS // 2] == list(range(1, N_STEPS, 2))
    pure = toy_trainer()
    pure.fit(toy_batches())
    assert_close(weights(mixed.crosscoder), weights(pure.crosscoder), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1e10, 1e11, 1e15])
def test_a_gradient_whose_square_overflows_is_refused(backend: str, scale: float) -> None:
    config = {"backend": backend, "max_grad_norm": None}
    trainer = toy_trainer(objective=[Reconstruction()], config=config)
    with pytest.raises(RuntimeError, match="gradient norm at step 0"):
        trainer.fit([scale * batch for batch in toy_batches(2)])


def test_explain_names_the_kernels_at_work_while_k_is_annealed() -> None:
    class Ask(Callback):
        def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
            said.add(trainer.explain())

    said: set[str] = set()
    toy_trainer(activation_fn=TopK(k=3, k_initial=16, anneal_fraction=1.0), callbacks=[Ask()]).fit(
        toy_batches()
    )
    assert len(said) == 1


def test_a_step_by_hand_says_the_same_as_fit() -> None:
    by_hand, in_fit = toy_trainer(), toy_trainer(callbacks=[diary := Diary()], config={"log_every_steps": 1})
    in_fit.fit(toy_batches())
    by_hand.total_tokens = in_fit.total_tokens
    for batch, row in zip(toy_batches(), diary.rows, strict=True):
        by_hand.crosscoder.train()
        report = by_hand.training_step(batch)
        assert report.scalars() == {key: row[key] for key in report.scalars()}


@pytest.mark.parametrize("key", ["weight_decay", "initial_lr"])
@pytest.mark.parametrize("backend", ["auto"])
def test_the_optimizers_group_is_obeyed(backend: str, key: str) -> None:
    ends = []
    for b in (backend, "reference"):
        trainer = toy_trainer(config={"backend": b})
        trainer.optimizer.param_groups[0][key] = 0.5
        trainer.fit(toy_batches(5))
        ends.append(weights(trainer.crosscoder))
    assert_close(*ends, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_new_objective_counts_from_the_next_step(backend: str) -> None:
    trainer = stopped(backend, 3)
    trainer.objective = (Reconstruction(weight=3.0),)
    terms = one_step(trainer, toy_batches()[3]).losses.terms
    assert {name: term.weight for name, term in terms.items()} == {"reconstruction": 3.0}


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_that_require_gradients_train_alike_and_receive_none(backend: str) -> None:
    plain, wanting = (toy_trainer(config={"backend": backend}) for _ in range(2))
    batches = [batch.requires_grad_() for batch in toy_batches(2)]
    plain.fit(toy_batches(2))
    wanting.fit(batches)
    assert_close(weights(wanting.crosscoder), weights(plain.crosscoder), rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_after_a_refused_step_the_run_goes_on_as_if_it_had_not_been(backend: str) -> None:
    trainer, undisturbed = stopped(backend, 5), stopped(backend, 5)
    silence = trainer.tokens_since_fired.clone()
    with pytest.raises(RuntimeError, match="gradient norm"):
        one_step(trainer, 1e25 * toy_batches()[5])
    assert torch.equal(trainer.tokens_since_fired, silence)
    for t in (trainer, undisturbed):
        one_step(t, toy_batches()[6])
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(trainer.crosscoder, name), getattr(undisturbed.crosscoder, name))


@pytest.mark.parametrize("backend", BACKENDS)
def test_moments_may_be_cleared_or_replaced_between_steps(backend: str) -> None:
    trainer = stopped(backend, 5)
    state = trainer.optimizer.state[trainer.crosscoder.W_dec]
    state["exp_avg_sq"] = 100 * state["exp_avg_sq"]
    fresh = successor(trainer, backend)
    for t in (trainer, fresh):
        one_step(t, toy_batches()[5])
    assert torch.equal(trainer.crosscoder.W_dec, fresh.crosscoder.W_dec)
    trainer.optimizer.state.clear()
    one_step(trainer, toy_batches()[6])


@pytest.mark.parametrize("n_latents", [13, 256])
def test_an_empty_batch_selects_nothing(n_latents: int) -> None:
    assert selection.batch_topk_indices(torch.zeros(0, n_latents), 3).tolist() == []


def test_no_entries_may_be_asked_for() -> None:
    for n_latents in (13, 256):
        assert selection.row_topk_indices(torch.ones(2, n_latents), 0).tolist() == []
        assert selection.batch_topk_indices(torch.ones(2, n_latents), 0).tolist() == []


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("n_latents", [4, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nan_is_dropped_whatever_its_sign(dtype: torch.dtype, n_latents: int, sign: float) -> None:
    scores = torch.zeros(2, n_latents, dtype=dtype)
    scores[0, :3], scores[1, :3] = torch.tensor([3.0, 3.0, 1.0]), torch.tensor([5.0, 5.0, 5.0])
    scores[0, 3] = torch.tensor(math.nan).copysign(torch.tensor(sign))
    for k in (1, 2):
        for function, mask in (
            (selection.row_topk_indices, reference.row_topk_mask),
            (selection.batch_topk_indices, reference.batch_topk_mask),
        ):
            expected = mask(scores, k).flatten().nonzero().squeeze(1)
            assert torch.equal(function(scores, k), expected), (function.__name__, k)


def test_an_overridden_fit_hides_no_other_override() -> None:
    class Mine(Trainer):
        def fit(self, batches: Any) -> None:  # type: ignore[misc]
            super().fit(batches)

        def after_optimizer_step(self) -> None:
            pass

    assert toy_trainer(cls=Mine).explain().startswith("autograd")


def test_global_hooks_are_heard() -> None:
    calls: list[str] = []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *args: calls.append("module"))
    try:
        toy_trainer().fit(toy_batches(2))
    finally:
        handle.remove()
    assert len(calls) >= 2


@pytest.mark.parametrize("selected", [3, 40])
def test_too_few_positive_scores_do_not_encode_twice(selected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from crosscoders.kernels.cpu import step as cpu_step  # noqa: PLC0415
    from crosscoders.kernels.dispatch import make_step  # noqa: PLC0415
    from crosscoders.kernels.step import Selection  # noqa: PLC0415
    from tests.kernels.step_cases import N_LATENTS, make_batch, make_weights  # noqa: PLC0415

    calls: list[int] = []
    original = cpu_step.linear
    monkeypatch.setattr(cpu_step, "linear", lambda *args: calls.append(1) or original(*args))
    kernels = make_step("cpu", make_weights(), precision="float32")
    for _ in range(4):
        kernels.encode(make_batch(9, seed=0), Selection(k=min(selected, N_LATENTS), per_row=False))
    assert len(calls) == 4
