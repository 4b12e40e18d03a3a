"""Loss terms: values by brute force, gradients where they belong, one total."""

import math

import pytest
import torch
from torch.testing import assert_close

from crosscoders.activation_fns import ActivationFn, BatchTopK, JumpReLU, ReLU, TopK
from crosscoders.crosscoder import Crosscoder, CrosscoderOutput
from crosscoders.kernels import SparseLatents
from crosscoders.losses import (
    AuxK,
    DecoderNormL1,
    JumpReLUL0,
    LossTerm,
    PreActivation,
    Reconstruction,
    TanhSparsity,
    check_objective,
    compute_losses,
)
from tests.core.toy import OBJECTIVES, context, kind_of, toy_crosscoder, toy_rows


def gradients(crosscoder: Crosscoder, objective: list[LossTerm], **options: int) -> dict[str, torch.Tensor]:
    crosscoder.zero_grad()
    output = crosscoder(toy_rows())
    compute_losses(objective, output, crosscoder=crosscoder, context=context(**options)).total.backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in crosscoder.named_parameters()
    }


@pytest.mark.parametrize(("activation_fn", "objective"), OBJECTIVES, ids=kind_of)
def test_gradients_reach_every_parameter(activation_fn: ActivationFn, objective: list[LossTerm]) -> None:
    for name, grad in gradients(toy_crosscoder(activation_fn), objective).items():
        assert grad.abs().sum() > 0, name
        assert grad.isfinite().all(), name


@pytest.mark.parametrize(("activation_fn", "objective"), OBJECTIVES, ids=kind_of)
def test_every_weighted_term_changes_the_gradient(
    activation_fn: ActivationFn, objective: list[LossTerm]
) -> None:
    crosscoder = toy_crosscoder(activation_fn)
    whole = gradients(crosscoder, objective)
    for i in range(len(objective)):
        without = gradients(crosscoder, objective[:i] + objective[i + 1 :])
        assert any(not torch.equal(whole[name], without[name]) for name in whole), objective[i]


@pytest.mark.parametrize(("activation_fn", "objective"), OBJECTIVES, ids=kind_of)
def test_the_total_is_the_weighted_sum(activation_fn: ActivationFn, objective: list[LossTerm]) -> None:
    crosscoder = toy_crosscoder(activation_fn)
    losses = compute_losses(objective, crosscoder(toy_rows()), crosscoder=crosscoder, context=context())
    expected = sum(t.weight * losses.terms[t.name].value.item() for t in objective)
    assert math.isclose(losses.total.item(), expected, rel_tol=1e-5)
    assert torch.equal(losses.detach().total, losses.total.detach())


@pytest.mark.parametrize("activation_fn", [TopK(k=3), BatchTopK(k=3)], ids=kind_of)
def test_auxk_alone_moves_dead_latents_only(activation_fn: ActivationFn) -> None:
    grads = gradients(toy_crosscoder(activation_fn), [AuxK(weight=1.0)], dead=5)
    for name in ("W_enc", "b_enc", "W_dec"):
        assert (grads[name][:5].flatten(1) if grads[name].ndim > 1 else grads[name][:5, None]).any(1).all()
        assert not grads[name][5:].any(), name
    assert not grads["b_dec"].any()


def test_auxk_by_brute_force() -> None:
    crosscoder = toy_crosscoder(TopK(k=3)).double()
    output = crosscoder(toy_rows().double())
    value = AuxK(k_aux=2).value(output, crosscoder, context(dead=5))
    residual = (output.inputs - output.reconstruction).detach()
    scale = crosscoder.selection_scale()
    error = 0.0
    for row, target in zip(output.pre_acts, residual):
        best = sorted(range(5), key=lambda j: -(row[j] * scale[j]).item())[:2]
        guess = sum(max(row[j].item(), 0.0) * crosscoder.W_dec[j].detach() for j in best)
        error += float((target - guess).square().sum())
    spread = float((residual - residual.mean(dim=0)).square().sum())
    assert math.isclose(value.item(), error / spread, rel_tol=1e-9)


def test_auxk_without_dead_latents_or_residual_is_zero_with_finite_gradients() -> None:
    crosscoder = toy_crosscoder(TopK(k=3))
    assert not any(grad.any() for grad in gradients(crosscoder, [AuxK()], dead=0).values())
    output = crosscoder(toy_rows())
    perfect = CrosscoderOutput(output.inputs, output.inputs, output.latents, output.pre_acts)
    value = AuxK().value(perfect, crosscoder, context())
    value.backward()
    assert value.item() == 0.0
    assert all(p.grad is None or p.grad.isfinite().all() for p in crosscoder.parameters())


def test_values_by_brute_force() -> None:
    crosscoder, x = toy_crosscoder(JumpReLU()).double(), toy_rows(8).double()
    with torch.no_grad():
        output = crosscoder(x)
    norms = [
        [float(crosscoder.W_dec[j, s].detach().norm()) for s in (slice(0, 6), slice(6, 12))]
        for j in range(32)
    ]
    f, pre = output.latents.tolist(), output.pre_acts.tolist()
    t = crosscoder.activation.thresholds().tolist()
    pairs = [(i, j) for i in range(8) for j in range(32)]
    expected = {
        Reconstruction(): float((output.inputs - output.reconstruction).square().sum()) / 8,
        DecoderNormL1(): sum(f[i][j] * sum(norms[j]) for i, j in pairs) / 8,
        TanhSparsity(c=4.0): sum(math.tanh(4 * f[i][j] * sum(norms[j])) for i, j in pairs) / 8,
        JumpReLUL0(): sum(pre[i][j] > t[j] for i, j in pairs) / 8,
        PreActivation(): sum(max(t[j] - pre[i][j], 0) * sum(norms[j]) for i, j in pairs) / 8,
    }
    for term, value in expected.items():
        got = term.value(output, crosscoder, context()).item()
        assert math.isclose(got, value, rel_tol=1e-6), term.name


@pytest.mark.parametrize("term", [Reconstruction(), DecoderNormL1(), TanhSparsity(), AuxK()], ids=repr)
def test_dense_and_sparse_latents_cost_the_same(term: LossTerm) -> None:
    crosscoder = toy_crosscoder(TopK(k=3)).double()
    output = crosscoder(toy_rows().double())
    assert isinstance(output.latents, SparseLatents)
    as_dense = CrosscoderOutput(
        output.inputs, output.reconstruction, output.latents.to_dense(), output.pre_acts
    )
    values = [term.value(o, crosscoder, context()) for o in (output, as_dense)]
    assert_close(values[0], values[1], rtol=1e-10, atol=1e-12)


def test_weights_warm_up_linearly() -> None:
    term = DecoderNormL1(weight=2.0, warmup_fraction=0.5)
    assert [term.weight_at(p) for p in (0.0, 0.25, 0.5, 1.0)] == [0.0, 1.0, 2.0, 2.0]
    assert DecoderNormL1(weight=2.0).weight_at(0.0) == 2.0


def test_penalties_on_thresholds_need_thresholds() -> None:
    for activation_fn in (ReLU(), BatchTopK(k=3)):
        crosscoder = toy_crosscoder(activation_fn)
        with pytest.raises(ValueError, match="use it with JumpReLU"):
            JumpReLUL0().value(crosscoder(toy_rows()), crosscoder, context())


def test_bad_objectives_and_weights_raise() -> None:
    with pytest.raises(ValueError, match="reconstruction"):
        check_objective([Reconstruction(), Reconstruction()])
    with pytest.raises(ValueError, match="one or more"):
        check_objective([])
    for bad in (-1.0, math.nan):
        with pytest.raises(ValueError, match="weight"):
            Reconstruction(weight=bad)
