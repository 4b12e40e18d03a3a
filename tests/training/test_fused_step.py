"""Training without autograd equals training through it: losses, weights, thresholds, counters, states."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from crosscoders.activation_fns import ActivationFn, BatchTopK, TopK
from crosscoders.crosscoder import Crosscoder
from crosscoders.losses import AuxK, LossTerm, Reconstruction
from crosscoders.metrics import ExplainedVariance
from crosscoders.training import Callback, StepReport, Trainer, TrainerConfig
from tests.core.toy import kind_of, toy_crosscoder, toy_rows
from tests.training.toy_run import BATCH, N_STEPS, same_bits, toy_batches, toy_trainer, weights

FUSED = ["cpu", "dense"]
BACKENDS = [*FUSED, "reference"]
ACTIVATION_FNS = [TopK(k=3), TopK(k=2, k_initial=32, anneal_fraction=0.5), BatchTopK(k=3, k_initial=8)]
OBJECTIVES: list[list[LossTerm]] = [
    [Reconstruction()],
    [AuxK(weight=0.5), Reconstruction(weight=0.7, warmup_fraction=0.3)],
    [Reconstruction(), AuxK(weight=0.3, warmup_fraction=0.5, k_aux=2)],
]


class Diary(Callback):
    """Keeps what every step showed."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.silence: list[Tensor] = []
        self.trail: list[Tensor] = []
        self.n_dead: list[int] = []

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        assert report.metrics is not None
        terms = {f"weight/{name}": term.weight for name, term in report.losses.terms.items()}
        self.rows.append({**report.metrics, **terms})
        self.silence.append(trainer.tokens_since_fired.clone())
        self.trail += [buffer.clone() for buffer in trainer.crosscoder.activation.buffers()]
        self.n_dead.append(int(trainer.dead_mask().sum()))


class Stop(Callback):
    """Ends the run as a crash would: without the calibration that follows the last step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        if report.step == self.step:
            raise KeyboardInterrupt


def trained(backend: str, n_steps: int = N_STEPS, **options: Any) -> tuple[Trainer, Diary]:
    diary = Diary()
    config = {"log_every_steps": 1, **options.pop("config", {}), "backend": backend}
    trainer = toy_trainer(config=config, callbacks=[diary], **options)
    trainer.fit(toy_batches(n_steps))
    return trainer, diary


def stopped(backend: str, step: int, **config: Any) -> Trainer:
    trainer = toy_trainer(config={**config, "backend": backend}, callbacks=[Stop(step)])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(toy_batches())
    return trainer


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{kind_of(o)}-{o[0].weight}")
@pytest.mark.parametrize("activation_fn", ACTIVATION_FNS, ids=repr)
@pytest.mark.parametrize("backend", FUSED)
def test_fifty_steps_equal_autograd(
    backend: str, activation_fn: ActivationFn, objective: list[LossTerm], max_norm: float | None
) -> None:
    options = {"activation_fn": activation_fn, "objective": objective, "config": {"max_grad_norm": max_norm}}
    (fused, ours), (autograd, theirs) = (trained(b, 50, **dict(options)) for b in (backend, "reference"))
    assert fused.crosscoder.W_dec.grad is None
    assert autograd.crosscoder.W_dec.grad is not None
    assert max(theirs.n_dead) > 0
    assert ours.n_dead == theirs.n_dead
    assert all(torch.equal(a, b) for a, b in zip(ours.silence, theirs.silence, strict=True))
    for row, expected in zip(ours.rows, theirs.rows, strict=True):
        assert list(row) == list(expected)
        assert_close(row, expected, rtol=1e-3, atol=1e-5)
    assert_close(ours.trail, theirs.trail, rtol=1e-4, atol=1e-5)
    assert_close(weights(fused.crosscoder), weights(autograd.crosscoder), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_runs_are_bit_identical(backend: str, precision: str) -> None:
    runs = [trained(backend, config={"precision": precision}) for _ in range(2)]
    (first, first_diary), (second, second_diary) = runs
    assert same_bits(weights(first.crosscoder), weights(second.crosscoder))
    assert first_diary.rows == second_diary.rows


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_resuming_is_exact(tmp_path: Path, backend: str, precision: str) -> None:
    undisturbed, _ = trained(backend, config={"precision": precision})
    config = {"precision": precision, "backend": backend, "checkpoint_every_steps": 5}
    first = toy_trainer(config=config, checkpoint_dir=tmp_path, callbacks=[Stop(13)])
    with pytest.raises(KeyboardInterrupt):
        first.fit(toy_batches())
    second = toy_trainer(config=config, checkpoint_dir=tmp_path)
    second.resume(tmp_path)
    second.fit(toy_batches())
    assert same_bits(weights(second.crosscoder), weights(undisturbed.crosscoder))


def one_step(trainer: Trainer, batch: Tensor) -> StepReport:
    """A step by hand, in a run of known length."""
    trainer.total_tokens = N_STEPS * BATCH
    trainer.crosscoder.train()
    return trainer.training_step(batch)


def successor(old: Trainer, backend: str, **config: Any) -> Trainer:
    """Another trainer that goes on from this one's weights, moments and counters."""
    state = old.state_dict()
    new = toy_trainer(config={**config, "backend": backend})
    new.crosscoder.load_state_dict(state["crosscoder"])
    new.optimizer.load_state_dict(state["optimizer"])
    new.tokens_since_fired.copy_(state["tokens_since_fired"])
    new.step, new.tokens_seen = old.step, old.tokens_seen
    return new


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("first", BACKENDS)
@pytest.mark.parametrize("then", BACKENDS)
def test_adam_goes_on_where_another_backend_stopped(first: str, then: str, max_norm: float | None) -> None:
    old = stopped(first, 10, max_grad_norm=max_norm)
    new = successor(old, then, max_grad_norm=max_norm)
    for batch in toy_batches()[10:13]:
        reports = [one_step(trainer, batch) for trainer in (old, new)]
        assert_close(reports[0].scalars(), reports[1].scalars(), rtol=1e-4, atol=1e-6)
    assert_close(weights(old.crosscoder), weights(new.crosscoder), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", FUSED)
def test_the_optimizer_keeps_the_same_state_as_under_autograd(backend: str) -> None:
    ours, theirs = (stopped(b, 10).optimizer.state_dict() for b in (backend, "reference"))
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for index, state in theirs["state"].items():
        assert ours["state"][index].keys() == state.keys()
        for key, expected in state.items():
            got = ours["state"][index][key]
            assert (got.shape, got.dtype, got.device) == (expected.shape, expected.dtype, expected.device)
            assert_close(got, expected, rtol=1e-3, atol=1e-5)
        assert state["step"] == 10


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", FUSED)
def test_weights_changed_between_two_steps_are_noticed(backend: str, precision: str) -> None:
    other = weights(toy_trainer().crosscoder)

    def in_place(crosscoder: Crosscoder) -> None:
        crosscoder.W_dec[:16].mul_(5.0)
        crosscoder.W_enc[8:24].mul_(0.1)

    def loaded(crosscoder: Crosscoder) -> None:
        crosscoder.load_state_dict(other)

    def biases(crosscoder: Crosscoder) -> None:
        crosscoder.b_enc.add_(1.0)
        crosscoder.b_dec.sub_(0.5)

    def replaced(crosscoder: Crosscoder) -> None:
        crosscoder.W_dec.data = crosscoder.W_dec.data.flip(0).contiguous()

    changes: list[Callable[[Crosscoder], None]] = [in_place, loaded, biases, replaced]
    for change in changes:
        old, batch = stopped(backend, 10, precision=precision), toy_batches()[10]
        with torch.no_grad():
            change(old.crosscoder)
        fresh = successor(old, backend, precision=precision)
        # The threshold's moving average went on in `old`, so the reports are compared, then the weights.
        reports = [one_step(trainer, batch) for trainer in (old, fresh)]
        assert reports[0].scalars() == reports[1].scalars(), change.__name__
        assert same_bits(weights(old.crosscoder), weights(fresh.crosscoder)), change.__name__


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_refused_gradient_changes_no_weight_and_no_moment(backend: str, max_norm: float | None) -> None:
    trainer = stopped(backend, 5, max_grad_norm=max_norm)
    before = trainer.state_dict()
    with pytest.raises(RuntimeError, match="gradient norm at step 5 is"):
        one_step(trainer, 1e25 * toy_batches()[5])
    after = trainer.state_dict()
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(before["crosscoder"][name], after["crosscoder"][name])
    for old, new in zip(before["optimizer"]["state"].values(), after["optimizer"]["state"].values()):
        assert all(torch.equal(old[key], new[key]) for key in old)


def loss_curve(backend: str, activation_fn: ActivationFn, *, precision: str) -> tuple[Tensor, Tensor]:
    """Mean loss of each hundred of a thousand steps, and held-out explained variance of each source."""
    losses: list[float] = []

    class Losses(Callback):
        def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
            losses.append(float(report.losses.terms["reconstruction"].value))

    config = TrainerConfig(
        lr=1e-3, log_every_steps=0, dead_after_tokens=512, backend=backend, precision=precision
    )
    # With many latents for few directions, one selection more or less does not lead to another optimum.
    crosscoder = toy_crosscoder(activation_fn, n_latents=128)
    Trainer(crosscoder, [Reconstruction(), AuxK()], config=config, callbacks=[Losses()]).fit(
        toy_batches(1000)
    )
    explained, rows = ExplainedVariance(crosscoder.sources), toy_rows(2000, seed=5)
    explained.update(rows, crosscoder.reconstruct(rows).detach())
    return torch.tensor(losses).view(-1, 100).mean(dim=1), torch.tensor(list(explained.compute().values()))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("activation_fn", [TopK(k=3), BatchTopK(k=3)], ids=kind_of)
def test_loss_curves_of_a_thousand_steps_agree(activation_fn: ActivationFn, precision: str) -> None:
    tolerance = {"float32": 0.01, "bfloat16": 0.03}[precision]
    curve, end = loss_curve("reference", activation_fn, precision=precision)
    assert curve[-1] < 0.5 * curve[0]
    for backend in FUSED:
        ours, our_end = loss_curve(backend, activation_fn, precision=precision)
        assert_close(ours, curve, rtol=tolerance, atol=0)
        assert_close(our_end, end, rtol=0, atol=0.005)
