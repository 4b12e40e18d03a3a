"""Every backend's step equals dense float64 autograd with `torch.optim.Adam`."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from crosscoders.kernels import SparseLatents, dense
from crosscoders.kernels.cpu import backward as cpu_backward
from crosscoders.kernels.cpu import step as cpu_step
from crosscoders.kernels.cpu.backward import Backward
from crosscoders.kernels.dispatch import make_step
from crosscoders.kernels.step import Selection
from tests.kernels.step_cases import (
    BACKENDS,
    BOUNDARIES,
    FIRST_STEP,
    N_LATENTS,
    SELECTIONS,
    Autograd,
    copied,
    make_batch,
    make_extra,
    make_weights,
    mask_of,
    poisoned_memory,
    tensors_of,
    train_step,
)


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    with poisoned_memory():
        yield


@pytest.mark.parametrize("max_norm", [None, 0.5, 1e6], ids=["free", "clipped", "loose"])
@pytest.mark.parametrize("with_extra", [False, True], ids=["sparse", "extra"])
@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
@pytest.mark.parametrize("boundaries", BOUNDARIES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_equal_float64_autograd(
    backend: str,
    boundaries: tuple[int, ...],
    selection: Selection,
    with_extra: bool,
    max_norm: float | None,
) -> None:
    weights, width = make_weights(boundaries), boundaries[-1]
    autograd, kernels = Autograd.of(weights), make_step(backend, weights, precision="float32")
    for i in range(4):
        x = make_batch(width, seed=i)
        # Latents 2 (hit by all), 5 (hit by none) and two others.
        extra = make_extra(width, seed=i, rows=[2, 5, 6, 11]) if with_extra else None
        scores = autograd.scores(x)
        mask = mask_of(scores, selection)
        assert not mask[:, 5].any()
        encoded, residual, squares, norm = train_step(
            kernels, x, selection, n=FIRST_STEP + i, max_norm=max_norm, extra=extra
        )
        assert torch.equal(encoded.latents.to_dense() != 0, mask)
        assert_close(encoded.smallest_score.double(), scores[mask].min(), rtol=1e-5, atol=1e-4)
        expected, expected_norm = autograd.step(x, mask, max_norm=max_norm, extra=extra)
        assert_close(residual.double(), expected, rtol=1e-5, atol=1e-4)
        assert_close(squares.double(), expected.square().sum(), rtol=1e-5, atol=0)
        assert_close(norm.double(), expected_norm, rtol=1e-5, atol=0)
    for name, parameter in autograd.parameters.items():
        matrix, state = getattr(weights, name), autograd.optimizer.state[parameter]
        assert_close(matrix.weight.double(), parameter.detach(), rtol=1e-5, atol=2e-6)
        assert_close(matrix.exp_avg.double(), state["exp_avg"], rtol=1e-5, atol=1e-5)
        assert_close(matrix.exp_avg_sq.double(), state["exp_avg_sq"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_silent_latent_moves_by_its_momentum(backend: str, max_norm: float | None, precision: str) -> None:
    weights = make_weights()
    before = copied(weights)
    kernels = make_step(backend, weights, precision=precision)
    train_step(kernels, make_batch(9, seed=0), SELECTIONS[1], n=FIRST_STEP, max_norm=max_norm)
    for name in ("W_enc", "W_dec"):
        old, new = getattr(before, name), getattr(weights, name)
        m, v = (getattr(old, key)[5].double() for key in ("exp_avg", "exp_avg_sq"))
        m, v = 0.9 * m, 0.99 * v
        root = v.sqrt() / (1 - 0.99**FIRST_STEP) ** 0.5
        moved = old.weight[5].double() - 1e-2 / (1 - 0.9**FIRST_STEP) * m / (root + 1e-8)
        assert_close(new.weight[5].double(), moved, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_without_positive_pre_activations_trains_the_bias_only(
    backend: str, selection: Selection
) -> None:
    weights = make_weights()
    weights.b_enc.weight[0, 2] = 0.0
    autograd, kernels = Autograd.of(weights), make_step(backend, weights, precision="float32")
    x = torch.zeros(4, 9)
    x[:, 0] = -200.0
    for i, max_norm in enumerate((None, 1.0)):
        encoded, residual, _, norm = train_step(kernels, x, selection, n=FIRST_STEP + i, max_norm=max_norm)
        assert not encoded.latents.to_dense().any()
        assert encoded.smallest_score == torch.inf
        expected, expected_norm = autograd.step(x, torch.zeros(4, N_LATENTS), max_norm=max_norm)
        assert_close(residual.double(), expected)
        assert_close(norm.double(), expected_norm, rtol=1e-5, atol=0)
    for name, parameter in autograd.parameters.items():
        assert_close(getattr(weights, name).weight.double(), parameter.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_scores_go_to_the_lowest_index(backend: str, per_row: bool) -> None:
    weights = make_weights()
    # Whole numbers, so that equal latents have equal scores in every order of summation.
    for matrix in (weights.W_enc, weights.W_dec):
        matrix.weight.copy_((2 * matrix.weight[:4]).round().repeat(N_LATENTS // 4, 1))
    weights.b_enc.weight.zero_()
    x, selection = (2 * make_batch(9, seed=0)).round(), Selection(k=4, per_row=per_row)
    scores = Autograd.of(weights).scores(x).float()
    encoded = make_step(backend, weights, precision="float32").encode(x, selection)
    assert torch.equal(encoded.latents.to_dense() != 0, mask_of(scores, selection))


@pytest.mark.parametrize("with_extra", [False, True])
@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_derived_belongs_to_the_new_weights(
    backend: str, precision: str, max_norm: float | None, with_extra: bool
) -> None:
    weights = make_weights((0, 3, 4, 11))
    kernels = make_step(backend, weights, precision=precision)
    extra = make_extra(11, seed=0, rows=[1, 5]) if with_extra else None
    before = weights.W_dec.weight.clone()
    train_step(kernels, make_batch(11, seed=0), SELECTIONS[2], n=1, max_norm=max_norm, extra=extra)
    assert not torch.equal(weights.W_dec.weight, before)
    parts = [weights.W_dec.weight[:, a:b] for a, b in itertools.pairwise((0, 3, 4, 11))]
    norms = torch.stack([torch.linalg.vector_norm(part, dim=1) for part in parts], dim=1)
    assert_close(kernels.weights.W_dec.norms, norms, rtol=1e-6, atol=0)
    assert_close(kernels.selection_scale(), norms.sum(dim=1), rtol=1e-6, atol=0)
    fresh = make_step(backend, copied(weights), precision=precision)
    for name, tensor in tensors_of(fresh.weights).items():
        assert torch.equal(tensor, tensors_of(kernels.weights)[name]), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_refresh_takes_over_weights_that_somebody_else_wrote(backend: str, precision: str) -> None:
    weights = make_weights()
    kernels = make_step(backend, weights, precision=precision)
    weights.W_dec.weight.mul_(3.0)
    weights.W_enc.weight.neg_()
    kernels.refresh()
    other = make_step(backend, copied(weights), precision=precision)
    derived = tensors_of(kernels.weights)
    assert all(torch.equal(t, derived[name]) for name, t in tensors_of(other.weights).items())
    x = make_batch(9, seed=3)
    dense = [step.encode(x, SELECTIONS[1]).latents.to_dense() for step in (kernels, other)]
    assert torch.equal(*dense)


class Refused(Exception):
    """What a check raises."""


@pytest.mark.parametrize("with_extra", [False, True])
@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_written_before_the_check_and_nothing_if_it_raises(
    backend: str, precision: str, max_norm: float | None, with_extra: bool
) -> None:
    kernels = make_step(backend, make_weights(), precision=precision)
    extra, weights = make_extra(9, seed=0, rows=[1, 5]) if with_extra else None, kernels.weights
    before = {name: tensor.clone() for name, tensor in tensors_of(weights).items()}
    told: list[float] = []

    def check(norm: Tensor) -> None:
        assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(weights).items())
        told.append(float(norm))
        if len(told) == 1:
            raise Refused

    def step() -> Tensor:
        x = make_batch(9, seed=0)
        return train_step(kernels, x, SELECTIONS[2], n=1, max_norm=max_norm, extra=extra, check=check)[3]

    with pytest.raises(Refused):
        step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(weights).items())
    norm = float(step())
    assert len(told) == 2
    assert told[1] >= norm * (1 - 1e-5)
    assert not any(torch.equal(tensor, before[name]) for name, tensor in tensors_of(weights).items())


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
@pytest.mark.parametrize("n_rows", [1, 4, 50])
def test_the_norm_bound_is_never_below_the_norm(n_rows: int, selection: Selection) -> None:
    for seed in range(5):
        weights = make_weights(seed=seed)
        kernels = make_step("cpu", weights, precision="float32")
        x = make_batch(9, seed=seed, n_rows=n_rows)
        latents = kernels.encode(x, selection).latents
        grad = kernels.residual(latents, x)[0]
        backward = Backward.of(grad, latents, x=x, W_dec=weights.W_dec.weight)
        squares = sum(
            (
                gradient.double().square().sum()
                for n in ("W_dec", "W_enc")
                for _, gradient in backward.row_gradients(n)
            ),
            backward.bias_squares(),
        )
        assert float(backward.norm_bound()) >= float(squares) ** 0.5 * (1 - 1e-6)


def test_the_norm_bound_is_reached_by_one_entry() -> None:
    latents = SparseLatents(torch.tensor([2.0]), torch.tensor([1]), torch.tensor([0, 1]), 3)
    grad, x, W_dec = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 2.0]]), torch.ones(3, 2)
    backward = Backward.of(grad, latents, x=x, W_dec=W_dec)
    # W_dec: 2 * |grad| = 10; value: <grad, 1> = 7, so W_enc: 7 * |x|; b_enc: 7; b_dec: 5.
    assert_close(float(backward.norm_bound()), (100 + 49 * 5 + 49 + 25) ** 0.5)


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
@pytest.mark.parametrize("backend", ["cpu", "dense"])
def test_sizes_of_groups_do_not_matter(
    backend: str,
    selection: Selection,
    precision: str,
    max_norm: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = []
    # All at once; a few rows or latents at a time; one at a time, where even one exceeds the limit.
    for group_bytes, n_scores in ((1 << 20, 1 << 20), (4 * 9 * 5, N_LATENTS * 3), (1, 1)):
        monkeypatch.setattr(cpu_backward, "_GROUP_BYTES", group_bytes)
        monkeypatch.setattr(cpu_step, "_SCORES_AT_ONCE", n_scores)
        monkeypatch.setattr(dense, "_PRODUCTS_AT_ONCE", n_scores)
        weights = make_weights()
        kernels = make_step(backend, weights, precision=precision)
        for i in range(3):
            encoded, residual, _, norm = train_step(
                kernels, make_batch(9, seed=i), selection, n=1 + i, max_norm=max_norm
            )
        written = {n: t for n, t in tensors_of(kernels.weights).items() if t.dtype is torch.float32}
        results.append({**written, "latents": encoded.latents.to_dense(), "residual": residual, "norm": norm})
    for other in results[1:]:
        assert_close(other, results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_results_are_kept_and_history_does_not_matter(backend: str, precision: str) -> None:
    weights = make_weights()
    kernels = make_step(backend, weights, precision=precision)
    kept: list[tuple[Tensor, Tensor]] = []
    for i, n_rows in enumerate((3, 12, 5, 12)):
        # Scores rise and fall, so that what the last batch led to expect is wrong.
        x = (1.0, 30.0, 0.1, 1.0)[i] * make_batch(9, seed=i, n_rows=n_rows)
        selection = SELECTIONS[2 - i % 2 * (i // 3)]
        fresh = make_step(backend, copied(weights), precision=precision)
        expected = fresh.encode(x, selection)
        max_norm = (None, 0.5)[i % 2]
        encoded, residual, squares, norm = train_step(kernels, x, selection, n=1 + i, max_norm=max_norm)
        assert torch.equal(encoded.latents.to_dense(), expected.latents.to_dense())
        results = (encoded.latents.values, encoded.latents.indices, encoded.latents.row_ptr, residual)
        kept += [(t, t.clone()) for t in (*results, squares, norm, encoded.smallest_score)]
    assert all(torch.equal(tensor, copy) for tensor, copy in kept)
