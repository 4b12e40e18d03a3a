"""The loop: one loss, observers that only observe, laws of the counters, bad input."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from crosscoders.activation_fns import ActivationFn, BatchTopK, JumpReLU, ReLU, TopK
from crosscoders.crosscoder import Crosscoder, CrosscoderOutput
from crosscoders.losses import AuxK, LossBreakdown, LossContext, LossTerm, Reconstruction
from crosscoders.training import Callback, History, ProgressBar, StepReport, Trainer, TrainerConfig
from tests.core.toy import OBJECTIVES, kind_of, toy_crosscoder, toy_rows
from tests.training.toy_run import same_bits, toy_batches, toy_trainer, weights


class Reports(Callback):
    """Keeps every report."""

    def __init__(self) -> None:
        self.reports: list[StepReport] = []

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        self.reports.append(report)


class Spy(Trainer):
    """Keeps the scalar that backward runs on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.optimized: list[float] = []

    def compute_losses(self, output: CrosscoderOutput, context: LossContext) -> LossBreakdown:
        losses = super().compute_losses(output, context)
        self.used: dict[str, float] = {}
        for name, term in losses.terms.items():
            term.value.register_hook(lambda grad, name=name: self.used.update({name: float(grad)}))
        self.last = losses
        return losses

    def after_optimizer_step(self) -> None:
        # The derivative of what backward ran on by each term is the weight that was really used.
        assert self.used == {name: pytest.approx(t.weight) for name, t in self.last.terms.items()}
        parts = [self.used[name] * term.value.detach() for name, term in self.last.terms.items()]
        self.optimized.append(float(sum(parts)))


@pytest.mark.parametrize(("activation_fn", "objective"), OBJECTIVES, ids=kind_of)
def test_logged_total_is_the_optimized_total(activation_fn: ActivationFn, objective: list[LossTerm]) -> None:
    reports = Reports()
    trainer = toy_trainer(
        activation_fn=activation_fn,
        objective=objective,
        cls=Spy,
        callbacks=[reports],
        config={"log_every_steps": 1},
    )
    trainer.fit(toy_batches(12))
    assert isinstance(trainer, Spy)
    logged = [report.metrics["loss"] for report in reports.reports if report.metrics]
    assert logged == pytest.approx(trainer.optimized, rel=1e-5)
    for report in reports.reports:
        parts = sum(t.weight * float(t.value) for t in report.losses.terms.values())
        assert math.isclose(report.scalars()["loss"], parts, rel_tol=1e-5)


class Trail(Trainer):
    """Keeps the moving threshold of each step, which calibration overwrites in the end."""

    def after_optimizer_step(self) -> None:
        self.__dict__.setdefault("trail", []).append(float(self.crosscoder.activation.threshold))


@pytest.mark.parametrize("observed", ["log", "evaluate", "checkpoint", "callbacks"])
def test_no_way_of_observing_changes_a_bit(tmp_path: Path, observed: str) -> None:
    plain = toy_trainer(cls=Trail)
    plain.fit(toy_batches())
    rows = toy_rows(50, seed=77)
    for interval in (1, 5):
        options: dict[str, Any] = {
            "log": {"config": {"log_every_steps": interval}},
            "evaluate": {
                "config": {"evaluate_every_steps": interval},
                "evaluation": lambda c: {"error": float((c.reconstruct(rows) - rows).square().mean())},
            },
            "checkpoint": {
                "config": {"checkpoint_every_steps": interval},
                "checkpoint_dir": tmp_path / str(interval),
            },
            "callbacks": {
                "config": {"log_every_steps": interval},
                "callbacks": [History(), ProgressBar(), Reports()],
            },
        }[observed]
        trainer = toy_trainer(cls=Trail, **options)
        trainer.fit(toy_batches())
        assert trainer.__dict__["trail"] == plain.__dict__["trail"]
        assert same_bits(weights(trainer.crosscoder), weights(plain.crosscoder))
        assert torch.equal(trainer.tokens_since_fired, plain.tokens_since_fired)


class Meddler(Callback):
    """Writes to the crosscoder when a named event comes."""

    def __init__(self, event: str, meddle: Any) -> None:
        setattr(self, event, lambda trainer, *args: meddle(trainer.crosscoder))


@pytest.mark.parametrize(
    "event", ["on_fit_start", "on_step_end", "on_evaluate", "on_checkpoint", "on_fit_end"]
)
def test_a_callback_that_writes_raises(tmp_path: Path, event: str) -> None:
    def in_place(crosscoder: Crosscoder) -> None:
        crosscoder.W_dec.mul_(1.0)

    def buffer(crosscoder: Crosscoder) -> None:
        crosscoder.train().encode(toy_rows(8))

    def storage(crosscoder: Crosscoder) -> None:
        crosscoder.W_enc.data = crosscoder.W_enc.data.clone()

    for i, meddle in enumerate((in_place, buffer, storage)):
        trainer = toy_trainer(
            callbacks=[Meddler(event, meddle)],
            config={"evaluate_every_steps": 2, "checkpoint_every_steps": 2},
            evaluation=lambda c: {"zero": 0.0},
            checkpoint_dir=tmp_path / str(i),
        )
        with pytest.raises(RuntimeError, match=rf"Meddler.{event} changed a parameter"):
            trainer.fit(toy_batches(3))


def test_an_evaluation_that_writes_raises() -> None:
    def spoil(crosscoder: Crosscoder) -> dict[str, float]:
        crosscoder.b_enc.zero_()
        return {}

    with pytest.raises(RuntimeError, match="evaluate changed"):
        toy_trainer(evaluation=spoil).fit(toy_batches(2))


def test_training_reduces_the_loss_and_ends_in_eval_mode() -> None:
    history = History()
    trainer = toy_trainer(callbacks=[history], config={"log_every_steps": 1})
    trainer.fit(toy_batches())
    assert history.rows[-1]["loss"] < 0.5 * history.rows[0]["loss"]
    assert not trainer.crosscoder.training
    assert trainer.summary()["stop_reason"] == "total_tokens reached"
    assert trainer.tokens_seen == trainer.total_tokens == sum(len(b) for b in toy_batches())


def test_dead_latents_are_counted_in_tokens() -> None:
    class Checked(Trainer):
        def after_optimizer_step(self) -> None:
            pass

        def compute_losses(self, output: CrosscoderOutput, context: LossContext) -> LossBreakdown:
            latents = output.latents
            dense = latents if isinstance(latents, Tensor) else latents.to_dense()
            fired.append((dense != 0).any(dim=0))
            sizes.append(dense.shape[0])
            masks.append(context.dead_mask.clone())
            return super().compute_losses(output, context)

    for activation_fn in (BatchTopK(k=2), ReLU()):
        fired: list[Tensor] = []
        sizes: list[int] = []
        masks: list[Tensor] = []
        toy_trainer(activation_fn=activation_fn, cls=Checked).fit(toy_batches(20))
        for step, mask in enumerate(masks):
            for j in range(32):
                last = max((s for s in range(step) if fired[s][j]), default=-1)
                assert mask[j] == (sum(sizes[last + 1 : step]) >= 128)
    assert masks


def test_threshold_is_calibrated_on_the_last_batches_with_the_final_weights() -> None:
    trainer = toy_trainer(activation_fn=BatchTopK(k=3, k_initial=9))
    trainer.fit(toy_batches())
    crosscoder = trainer.crosscoder
    scores = []
    for batch in toy_batches()[-4:]:
        v = (crosscoder.pre_activations(batch) * crosscoder.selection_scale()).detach().flatten()
        scores.append(v.topk(3 * batch.shape[0]).values.min())
    assert_close(crosscoder.activation.threshold, torch.stack(scores).mean())


def test_reports_name_the_metrics() -> None:
    history = History()
    trainer = toy_trainer(callbacks=[history], config={"log_every_steps": 5})
    trainer.fit(toy_batches(10))
    assert [row["step"] for row in history.rows] == [5, 10]
    assert {"loss", "loss/reconstruction", "loss/auxk", "l0", "dead_fraction", "ev/base"} <= set(
        history.rows[0]
    )


def test_history_writes_a_table(tmp_path: Path) -> None:
    trainer = toy_trainer(callbacks=[History(tmp_path / "h.csv")], config={"log_every_steps": 5})
    trainer.fit(toy_batches(10))
    lines = (tmp_path / "h.csv").read_text().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("step,tokens,loss,")


def test_a_requested_stop_ends_after_the_step_with_its_reason() -> None:
    class Stop(Callback):
        def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
            if report.step == 4:
                trainer.request_stop("seen enough")

    trainer = toy_trainer(callbacks=[Stop()])
    trainer.fit(toy_batches())
    assert (trainer.step, trainer.stop_reason) == (4, "seen enough")
    assert trainer.crosscoder.activation.threshold > 0


def test_callbacks_hear_of_a_failure_and_it_is_raised_again() -> None:
    heard: list[BaseException] = []

    class Listener(Callback):
        def on_exception(self, trainer: Trainer, error: BaseException) -> None:
            heard.append(error)

    with pytest.raises(ValueError, match="shape") as caught:
        toy_trainer(callbacks=[Listener()]).fit([torch.ones(4, 11)])
    assert heard == [caught.value]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.ones(8, 11), r"batch of step 2.*\(8, 11\).*\[batch, 12\]"),
        (torch.ones(12), r"batch of step 2.*\(12,\)"),
        (torch.ones(8, 12, dtype=torch.int64), r"batch of step 2.*floating-point.*int64"),
        (torch.ones(0, 12), r"batch of step 2.*at least one row"),
        ([1.0], r"batch of step 2.*floating-point tensor, got list"),
    ],
)
def test_bad_batches_raise_naming_the_step(bad: Any, message: str) -> None:
    trainer = toy_trainer(config={"total_tokens": 1000})
    with pytest.raises(ValueError, match=message):
        trainer.fit(iter([*toy_batches(2), bad]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_activations_raise_and_update_nothing(value: float) -> None:
    batches, reference = toy_batches(3), toy_trainer(config={"total_tokens": 192})
    reference.fit(iter(batches[:2]))
    poisoned = batches[2].clone()
    poisoned[5, 9] = value
    trainer = toy_trainer(config={"total_tokens": 192})
    match = "step 2: source 'distilled' has 1 NaN or infinite values, the first in row 5"
    with pytest.raises(ValueError, match=match):
        trainer.fit(iter([*batches[:2], poisoned]))
    for name, parameter in reference.crosscoder.named_parameters():
        assert torch.equal(parameter, trainer.crosscoder.get_parameter(name))


def test_a_gradient_that_is_not_finite_raises_and_updates_nothing() -> None:
    trainer = toy_trainer(objective=[Reconstruction()])
    before = dict(trainer.crosscoder.named_parameters())
    before = {name: parameter.clone() for name, parameter in before.items()}
    with pytest.raises(RuntimeError, match="gradient norm at step 0"):
        trainer.fit([1e25 * toy_batches(1)[0]])
    for name, parameter in trainer.crosscoder.named_parameters():
        assert torch.equal(parameter, before[name])


def test_the_length_of_the_run_must_be_known() -> None:
    with pytest.raises(ValueError, match="total_tokens"):
        toy_trainer().fit(iter(toy_batches(2)))
    with pytest.raises(ValueError, match="gave nothing"):
        toy_trainer(config={"total_tokens": 10}).fit([])


def test_unusable_trainers_raise() -> None:
    crosscoder = toy_crosscoder(ReLU())
    with pytest.raises(ValueError, match="unfold"):
        Trainer(crosscoder.fold(), [Reconstruction()], config=TrainerConfig())
    with pytest.raises(ValueError, match="checkpoint_dir"):
        Trainer(crosscoder, [Reconstruction()], config=TrainerConfig(checkpoint_every_steps=1))


def test_unknown_and_unusable_config_values_raise() -> None:
    with pytest.raises(ValueError, match=r"\['learning_rate'\].*lr"):
        TrainerConfig.from_dict({"learning_rate": 1.0})
    for bad in ({"lr": 0.0}, {"precision": "float16"}, {"warmup_fraction": 2.0}, {"total_tokens": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            TrainerConfig.from_dict(bad)
    config = TrainerConfig(betas=(0.0, 0.99))
    assert TrainerConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("activation_fn", [ReLU(), TopK(k=3), BatchTopK(k=3), JumpReLU()], ids=kind_of)
def test_bfloat16_products_train_float32_weights(activation_fn: ActivationFn) -> None:
    history = History()
    trainer = toy_trainer(
        activation_fn=activation_fn,
        callbacks=[history],
        config={"precision": "bfloat16", "log_every_steps": 1},
    )
    trainer.fit(toy_batches(40))
    assert trainer.crosscoder.W_enc.dtype == torch.float32
    assert history.rows[-1]["loss/reconstruction"] < 0.5 * history.rows[0]["loss/reconstruction"]


def test_a_subclass_changes_the_objective_and_the_optimizer() -> None:
    class Mine(Trainer):
        def configure_optimizer(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.crosscoder.parameters(), lr=0.1)

        def compute_losses(self, output: CrosscoderOutput, context: LossContext) -> LossBreakdown:
            return LossBreakdown(
                {"reconstruction": super().compute_losses(output, context).terms["reconstruction"]}
            )

        def evaluate(self) -> dict[str, float]:
            return {"one": 1.0}

    trainer = toy_trainer(cls=Mine, objective=[Reconstruction(), AuxK(weight=100.0)])
    reports = Reports()
    trainer.callbacks = (reports,)
    trainer.fit(toy_batches(5))
    assert list(reports.reports[0].losses.terms) == ["reconstruction"]
    assert trainer.last_evaluation == {"one": 1.0}


def test_learning_rate_warms_up_and_decays() -> None:
    reports = Reports()
    config = {"warmup_fraction": 0.25, "decay_fraction": 0.5, "lr": 1.0, "total_tokens": 8 * 64}
    toy_trainer(callbacks=[reports], config=config).fit(toy_batches(9)[:8])
    rates = [report.learning_rate for report in reports.reports]
    assert_close(rates, [0.25, 0.75, 1.0, 1.0, 0.875, 0.625, 0.375, 0.125])
