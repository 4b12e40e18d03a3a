"""With low precision a step equals float64 arithmetic on the same rounded numbers, but for rounded products.

The unit roundoff of bfloat16 is 2^-8; a product whose result is stored in bfloat16 is off by that part of it.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from crosscoders.kernels.dispatch import make_step
from crosscoders.kernels.step import Selection, StepKernels, StepWeights
from tests.kernels.step_cases import (
    BACKENDS,
    FIRST_STEP,
    NUMBERS,
    SELECTIONS,
    copied,
    make_batch,
    make_weights,
    mask_of,
    poisoned_memory,
    train_step,
)

UNIT = 2.0**-8
# Sums in float32 of numbers of this size, before the result is rounded.
SUM_ERROR = 1e-4


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    with poisoned_memory():
        yield


def rounded(tensor: Tensor) -> Tensor:
    return tensor.bfloat16().double()


def scores_of(backend: str, weights: StepWeights, x: Tensor, *, scale: Tensor) -> Tensor:
    """Scores in float64 from what goes into the product: the CPU's copy of W_enc carries the scale."""
    W_enc, b_enc = weights.W_enc.weight, weights.b_enc.weight[0]
    if backend == "cpu":
        return rounded(x) @ rounded(W_enc * scale[:, None]).T + rounded(b_enc * scale)
    return (rounded(x) @ rounded(W_enc).T + rounded(b_enc)) * scale.double()


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_selections_differ_only_within_the_rounding(backend: str, selection: Selection) -> None:
    n_different = n_selected = 0
    for seed in range(10):
        weights, x = make_weights(seed=seed), make_batch(9, seed=seed, n_rows=40)
        kernels = make_step(backend, weights, precision="bfloat16")
        encoded, scale = kernels.encode(x, selection), kernels.selection_scale()
        scores = scores_of(backend, weights, x, scale=scale)
        latents = encoded.latents.to_dense().double()
        chosen, expected = latents != 0, mask_of(scores, selection)
        slack = UNIT * scores.abs() + SUM_ERROR
        assert bool(((latents * scale - scores).abs() <= slack)[chosen].all())
        kth = torch.where(expected, scores, torch.inf)
        kth = kth.min(dim=1, keepdim=True).values if selection.per_row else kth.min()
        differs = chosen != expected
        assert bool(((scores - kth).abs() <= 2 * slack)[differs].all())
        n_different, n_selected = n_different + int(differs.sum()), n_selected + int(expected.sum())
    assert n_different <= 0.02 * n_selected


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_residual_equals_float64_decoding(backend: str) -> None:
    weights, x = make_weights(), make_batch(9, seed=0)
    kernels = make_step(backend, weights, precision="bfloat16")
    latents = kernels.encode(x, SELECTIONS[1]).latents
    residual, squares = kernels.residual(latents, x)
    assert residual.dtype == squares.dtype == torch.float32
    dense, W_dec = latents.to_dense(), weights.W_dec.weight
    is_exact = backend == "cpu"
    decoded = dense.double() @ W_dec.double() if is_exact else rounded(dense) @ rounded(W_dec)
    expected = decoded + weights.b_dec.weight.double() - x.double()
    error = (residual - expected).abs()
    assert bool((error <= (0 if is_exact else UNIT) * decoded.abs() + SUM_ERROR).all())
    assert_close(squares.double(), residual.double().square().sum(), rtol=1e-5, atol=0)


def gradients_of(kernels: StepKernels, dense: Tensor, residual: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Gradients in float64, and under "error/..." how far bfloat16 products may be from them."""
    grad, is_exact = 2 / len(x) * residual, type(kernels).__name__ == "CpuStep"
    low = (lambda t: t.double()) if is_exact else rounded
    grad_pre = torch.where(dense != 0, low(grad) @ low(kernels.weights.W_dec.weight).T, 0.0)
    unit = 0.0 if is_exact else UNIT
    W_dec, W_enc = low(dense).T @ low(grad), grad_pre.T @ low(x)
    return {
        "W_dec": W_dec,
        "W_enc": W_enc,
        "b_enc": grad_pre.sum(dim=0)[None],
        "b_dec": grad.double().sum(dim=0)[None],
        "error/W_dec": unit * W_dec.abs(),
        "error/W_enc": unit * (W_enc.abs() + 2 * grad_pre.abs().T @ low(x).abs()),
        "error/b_enc": unit * 2 * grad_pre.abs().sum(dim=0)[None],
        "error/b_dec": torch.zeros(()),
    }


@pytest.mark.parametrize("max_norm", [None, 0.5, 1e6])
@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_update_equals_adam_on_float64_gradients(
    backend: str, selection: Selection, max_norm: float | None
) -> None:
    weights, x = make_weights(), make_batch(9, seed=0)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        getattr(weights, name).exp_avg.zero_()
    before = copied(weights)
    kernels = make_step(backend, weights, precision="bfloat16")
    first = kernels.encode(x, selection).latents
    expected = gradients_of(kernels, first.to_dense(), kernels.residual(first, x)[0], x)
    norm = float(train_step(kernels, x, selection, n=FIRST_STEP, max_norm=max_norm)[3])
    factor, squares = min(1.0, (max_norm or torch.inf) / (norm + 1e-6)), 0.0
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        old, new = getattr(before, name), getattr(weights, name)
        clipped = new.exp_avg.double() / (1 - NUMBERS["beta1"])
        gradient = clipped / factor
        squares += float(gradient.square().sum())
        tolerance = expected[f"error/{name}"] + 1e-5 * expected[name].abs().max()
        assert bool(((gradient - expected[name]).abs() <= tolerance).all()), name
        v = 0.99 * old.exp_avg_sq.double() + 0.01 * clipped.square()
        assert_close(new.exp_avg_sq.double(), v, rtol=1e-5, atol=1e-7)
        root = v.sqrt() / (1 - 0.99**FIRST_STEP) ** 0.5
        moved = NUMBERS["lr"] / (1 - 0.9**FIRST_STEP) * new.exp_avg.double() / (root + NUMBERS["eps"])
        assert_close(new.weight.double(), old.weight.double() - moved, rtol=1e-6, atol=1e-6)
    assert_close(norm, squares**0.5, rtol=1e-5, atol=0)
