"""The step on Triton, interpreted where there is no GPU, equals the step on the CPU and training by autograd.

A few cases: each takes seconds in the interpreter. The operations have their own tests.
"""

import pytest
import torch
from torch.testing import assert_close

from crosscoders.activation_fns import BatchTopK
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.kernels.adam import AdamStep
from crosscoders.kernels.dispatch import make_step
from crosscoders.kernels.step import Selection, StepKernels, UpdatePlan
from crosscoders.losses import AuxK, Reconstruction
from crosscoders.sources import Source
from crosscoders.training import Trainer, TrainerConfig
from tests.kernels.step_cases import NAMES, NUMBERS, make_batch, make_extra, make_weights, unchecked

BOUNDARIES = (0, 4, 9)


def two_steps(backend: str, selection: Selection, plan: UpdatePlan) -> tuple[StepKernels, list[torch.Tensor]]:
    kernels = make_step(backend, make_weights(BOUNDARIES), precision="float32")
    results = []
    for n in (1, 2):
        x = make_batch(BOUNDARIES[-1], seed=n)
        encoded = kernels.encode(x, selection)
        residual, square_sum = kernels.residual(encoded.latents, x)
        norm = kernels.update(residual / 5, encoded, x, step=AdamStep(n=n, **NUMBERS), plan=plan)
        results += [encoded.latents.to_dense(), encoded.smallest_score, residual, square_sum, norm]
    return kernels, results


@pytest.mark.parametrize("has_extra", [False, True])
@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("selection", [Selection(k=3, per_row=True), Selection(k=3, per_row=False)])
def test_steps_equal_those_on_the_cpu(selection: Selection, max_norm: float | None, has_extra: bool) -> None:
    extra = make_extra(BOUNDARIES[-1], seed=7, rows=[1, 5, 20]) if has_extra else None
    plan = UpdatePlan(max_norm=max_norm, extra=extra, check=unchecked)
    expected_kernels, expected = two_steps("cpu", selection, plan)
    kernels, results = two_steps("triton", selection, plan)
    assert_close(results, expected, rtol=2e-5, atol=2e-5)
    for name in NAMES:
        ours, theirs = (getattr(k.weights, name) for k in (kernels, expected_kernels))
        for field in ("weight", "exp_avg", "exp_avg_sq"):
            assert_close(getattr(ours, field), getattr(theirs, field), rtol=2e-5, atol=2e-5)


def test_norms_are_the_same_bits_after_an_update_and_after_a_refresh() -> None:
    plan = UpdatePlan(max_norm=None, extra=None, check=unchecked)
    kernels, _ = two_steps("triton", Selection(k=3, per_row=False), plan)
    before = kernels.selection_scale()
    kernels.refresh()
    assert torch.equal(before, kernels.selection_scale())


def test_a_bound_that_is_not_finite_is_seen_before_anything_is_written() -> None:
    def refuse(norm: torch.Tensor) -> None:
        if not bool(torch.isfinite(norm)):
            raise RuntimeError("not finite")

    for max_norm in (None, 1.0):
        kernels = make_step("triton", make_weights(BOUNDARIES), precision="float32")
        before = [getattr(kernels.weights, name).weight.clone() for name in NAMES]
        x = make_batch(BOUNDARIES[-1], seed=1)
        encoded = kernels.encode(x, Selection(k=3, per_row=True))
        residual, _ = kernels.residual(encoded.latents, x)
        residual[0, 0] = torch.nan
        plan = UpdatePlan(max_norm=max_norm, extra=None, check=refuse)
        with pytest.raises(RuntimeError, match="not finite"):
            kernels.update(residual, encoded, x, step=AdamStep(n=1, **NUMBERS), plan=plan)
        for name, weight in zip(NAMES, before):
            assert torch.equal(getattr(kernels.weights, name).weight, weight)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_equals_training_through_autograd(precision: str) -> None:
    losses = {}
    for backend in ("reference", "triton"):
        sources = (Source(name="a", d_model=5, scale=1.3), Source(name="b", d_model=3))
        spec = CrosscoderConfig(sources=sources, n_latents=32, activation_fn=BatchTopK(k=3))
        config = TrainerConfig(lr=1e-2, backend=backend, precision=precision, dead_after_tokens=20)
        trainer = Trainer(Crosscoder(spec), [Reconstruction(), AuxK()], config=config)
        generator = torch.Generator().manual_seed(3)
        batches = [torch.randn(12, 8, generator=generator) + 0.3 for _ in range(5)]
        trainer.total_tokens = 60
        reports = [trainer.training_step(batch) for batch in batches]
        losses[backend] = torch.tensor([[float(r.losses.total), float(r.grad_norm)] for r in reports])
        assert trainer.dead_mask().any()
    tolerance = {"float32": 1e-5, "bfloat16": 0.02}[precision]
    assert_close(losses["triton"], losses["reference"], rtol=tolerance, atol=0)


def _batch_topk():
    from crosscoders.activation_fns import BatchTopK  # noqa: PLC0415

    return BatchTopK(k=3)
