"""Activation functions: selection, gradients, thresholds, specs."""

import dataclasses
import json
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from crosscoders.activation_fns import (
    ActivationFn,
    ActivationModule,
    BatchTopK,
    JumpReLU,
    ReLU,
    TopK,
    activation_fn_from_dict,
)
from crosscoders.activation_fns.jumprelu import jump, step
from crosscoders.kernels import SparseLatents
from tests.core.toy import ACTIVATION_FNS, kind_of

ONES = torch.ones(16)


def pre_acts(n_rows: int = 10, *, seed: int = 0) -> Tensor:
    return torch.randn(n_rows, 16, generator=torch.Generator().manual_seed(seed))


def dense(latents: Tensor | SparseLatents) -> Tensor:
    return latents if isinstance(latents, Tensor) else latents.to_dense()


@pytest.mark.parametrize("spec", ACTIVATION_FNS, ids=kind_of)
def test_specs_round_trip_through_json_and_refuse_other_keys(spec: ActivationFn) -> None:
    data = json.loads(json.dumps(spec.to_dict()))
    assert activation_fn_from_dict(data) == spec
    with pytest.raises(ValueError, match="bandwith"):
        activation_fn_from_dict({**data, "bandwith": 1.0})
    with pytest.raises(ValueError, match="known kinds"):
        activation_fn_from_dict({**data, "kind": "softplus"})


@pytest.mark.parametrize("spec", [TopK(k=17), BatchTopK(k=17), TopK(k=2, k_initial=17)], ids=repr)
def test_k_above_n_latents_raises(spec: ActivationFn) -> None:
    with pytest.raises(ValueError, match=r"=17 latents but the crosscoder has only 16"):
        spec.build(16)


def test_unusable_parameters_raise() -> None:
    for make in (
        lambda: TopK(k=0),
        lambda: BatchTopK(k=1, threshold_momentum=1.0),
        lambda: BatchTopK(k=1, anneal_fraction=0.0),
        lambda: JumpReLU(bandwidth=0.0),
        lambda: JumpReLU(bandwidth_space="unit"),
    ):
        with pytest.raises(ValueError, match="got"):
            make()


def test_a_taken_kind_raises_at_class_creation() -> None:
    with pytest.raises(TypeError, match="'relu'"):

        class Other(ActivationFn):
            kind: ClassVar[str] = "relu"

            def build(self, n_latents: int) -> ActivationModule:
                return ActivationModule()


def test_topk_keeps_k_of_each_row_by_scaled_value() -> None:
    pre, scale = pre_acts().abs() + 0.1, torch.arange(1.0, 17.0)
    latents = dense(TopK(k=4).build(16)(pre, scale))
    for row, kept in zip(pre, latents):
        best = (row * scale).topk(4).indices
        assert set(kept.nonzero().squeeze(1).tolist()) == set(best.tolist())
        assert torch.equal(kept[best], row[best])


def test_batch_topk_trains_on_exactly_n_times_k() -> None:
    latents = BatchTopK(k=3).build(16).train()(pre_acts(20), ONES)
    assert isinstance(latents, SparseLatents)
    assert latents.values.numel() == 60
    assert latents.row_ptr.diff().unique().numel() > 1


def test_batch_topk_inference_is_independent_of_the_batch() -> None:
    module = BatchTopK(k=3).build(16).train()
    module(pre_acts(40, seed=1), ONES)
    module.eval()
    pre = pre_acts(20)
    whole = dense(module(pre, ONES))
    alone = torch.cat([dense(module(row[None], ONES)) for row in pre])
    beside = dense(module(torch.cat([pre, 100 * pre_acts(20, seed=2).abs()]), ONES))[:20]
    assert torch.equal(whole, alone)
    assert torch.equal(whole, beside)
    assert (whole != 0).sum(dim=1).unique().numel() > 1


def test_batch_topk_tracks_the_smallest_selected_score() -> None:
    module = BatchTopK(k=3, threshold_momentum=0.9).build(16).train()
    smallest = []
    for seed in (1, 2):
        pre = pre_acts(20, seed=seed)
        module(pre, ONES)
        smallest.append(pre.flatten().topk(60).values.min())
    assert_close(module.threshold, 0.9 * smallest[0] + 0.1 * smallest[1])


def test_calibration_sets_the_mean_of_the_smallest_scores() -> None:
    module = BatchTopK(k=3, k_initial=8).build(16)
    module.set_progress(0.0)
    batches = [pre_acts(20, seed=seed) for seed in (1, 2, 3)]
    scores = torch.stack([module.calibration_score(pre, ONES) for pre in batches])
    module.calibrate(scores)
    expected = torch.stack([pre.flatten().topk(60).values.min() for pre in batches]).mean()
    assert_close(module.threshold, expected)


def test_batch_topk_without_a_threshold_refuses_inference() -> None:
    with pytest.raises(ValueError, match="needs a threshold"):
        BatchTopK(k=3).build(16).eval()(pre_acts(), ONES)


@pytest.mark.parametrize("kind", [TopK, BatchTopK])
def test_k_annealing_is_a_function_of_progress(kind: type[TopK] | type[BatchTopK]) -> None:
    module = kind(k=4, k_initial=14, anneal_fraction=0.5).build(16)
    ks = []
    for fraction in (0.0, 0.25, 0.5, 1.0, 0.0):
        module.set_progress(fraction)
        ks.append(module.expected_l0)
    assert ks == [14.0, 9.0, 4.0, 4.0, 14.0]


def test_relu_is_relu() -> None:
    assert torch.equal(ReLU().build(16)(pre_acts(), ONES), pre_acts().clamp(min=0))


def rectangle(x: float, t: float, bandwidth: float) -> float:
    return 1.0 if abs((x - t) / bandwidth) < 0.5 else 0.0


def test_jumprelu_gradients_follow_the_written_formula() -> None:
    """df/dx = 1[x > t]; df/dt = -(t/eps) K((x-t)/eps); d1/dt = -(1/eps) K((x-t)/eps), K the rectangle."""
    x, t, eps = pre_acts().double(), torch.linspace(0.05, 0.8, 16, dtype=torch.float64), 0.7
    weight = pre_acts(seed=5).double()
    for fn, to_x, to_t in (
        (jump, lambda x, t: float(x > t), lambda x, t: -(t / eps) * rectangle(x, t, eps)),
        (step, lambda x, t: 0.0, lambda x, t: -(1 / eps) * rectangle(x, t, eps)),
    ):
        xs, ts = x.clone().requires_grad_(), t.clone().requires_grad_()
        (fn(xs, ts, bandwidth=eps) * weight).sum().backward()
        grad_x, grad_t = torch.zeros(10, 16, dtype=torch.float64), torch.zeros(16, dtype=torch.float64)
        for i in range(10):
            for j in range(16):
                w, xi, tj = weight[i, j].item(), x[i, j].item(), t[j].item()
                grad_x[i, j] = w * to_x(xi, tj)
                grad_t[j] += w * to_t(xi, tj)
        assert_close(ts.grad, grad_t)
        assert_close(torch.zeros_like(x) if xs.grad is None else xs.grad, grad_x)


def test_jumprelu_keeps_values_above_the_threshold_only() -> None:
    x = torch.tensor([[0.05, 0.1, 0.11, -1.0, 3.0]])
    module = JumpReLU(initial_threshold=0.1).build(5)
    threshold = module.thresholds().detach()
    expected = torch.where(x > threshold, x, 0.0)
    assert torch.equal(module(x, torch.ones(5)), expected)
    assert list(module.state_dict()) == ["log_threshold"]


def test_specs_are_frozen_and_hashable() -> None:
    assert len({*ACTIVATION_FNS, *ACTIVATION_FNS}) == len(ACTIVATION_FNS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        TopK(k=3).k = 4
