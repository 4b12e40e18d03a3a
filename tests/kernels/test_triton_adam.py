"""Row-wise Adam in Triton, against `torch.optim.Adam` in float64."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crosscoders.kernels.adam import AdamMatrix, AdamStep
from crosscoders.kernels.triton.adam import adam_rows_, first_chunks
from tests.kernels.sparse_cases import (
    DEVICE,
    SMALL,
    copy_of,
    make_matrix,
    poisoned_memory,
    relative_error,
    tensors_of,
)
from tests.kernels.tolerances import RELATIVE_ERROR

EXACT = RELATIVE_ERROR[torch.float32]
STEP = AdamStep(lr=1e-2, beta1=0.9, beta2=0.99, eps=1e-8, n=1)
SOURCES = [(0, 1), (0, 16), (0, 9, 23), (0, 3, 4, 21), (0, 8, 11, 27, 41)]


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    with poisoned_memory():
        yield


def fresh_matrix(boundaries: tuple[int, ...]) -> AdamMatrix:
    matrix = make_matrix(5, boundaries)
    return replace(matrix, exp_avg=0 * matrix.exp_avg, exp_avg_sq=0 * matrix.exp_avg_sq)


def gradients(shape: torch.Size, *, n: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype) for _ in range(n)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("boundaries", SOURCES)
def test_five_updates_equal_the_library_optimizer(boundaries: tuple[int, ...], dtype: torch.dtype):
    matrix = fresh_matrix(boundaries)
    parameter = torch.nn.Parameter(matrix.weight.double())
    optimizer = torch.optim.Adam([parameter], lr=STEP.lr, betas=(STEP.beta1, STEP.beta2), eps=STEP.eps)
    for n, grad in enumerate(gradients(matrix.weight.shape, n=5, dtype=dtype), start=1):
        parameter.grad = 0.7 * grad.double()
        optimizer.step()
        step = replace(STEP, n=n, grad_scale=torch.tensor(0.7, device=DEVICE))
        adam_rows_(matrix, grad, step=step, tiles=SMALL if n % 2 else None)
    state = optimizer.state[parameter]
    assert relative_error(matrix.weight, parameter.detach()) < EXACT
    assert relative_error(matrix.exp_avg, state["exp_avg"]) < EXACT
    assert relative_error(matrix.exp_avg_sq, state["exp_avg_sq"]) < EXACT


@pytest.mark.parametrize("boundaries", SOURCES)
def test_norms_and_copy_are_those_of_the_new_weights(boundaries: tuple[int, ...]):
    matrix = fresh_matrix(boundaries)
    adam_rows_(matrix, gradients(matrix.weight.shape, n=1)[0], step=replace(STEP, lr=1.0), tiles=SMALL)
    expected = torch.stack(
        [matrix.weight[:, a:b].double().norm(dim=1) for a, b in itertools.pairwise(boundaries)], dim=1
    )
    assert matrix.norms is not None
    assert relative_error(matrix.norms, expected) < EXACT
    # The interpreter truncates where the GPU rounds: at most one unit in the last place.
    assert matrix.shadow is not None
    assert bool(((matrix.shadow.float() - matrix.weight).abs() <= 2**-7 * matrix.weight.abs()).all())


def test_eps_may_be_zero():
    matrix = fresh_matrix((0, 9, 23))
    before = matrix.weight.clone()
    (grad,) = gradients(before.shape, n=1)
    adam_rows_(matrix, grad, step=replace(STEP, eps=0.0), tiles=SMALL)
    assert relative_error(matrix.weight, before.double() - STEP.lr * grad.double().sign()) < EXACT
    assert matrix.norms is not None
    assert bool(matrix.norms.isfinite().all())


def test_rows_without_gradient_move_by_momentum():
    matrix = make_matrix(5, (0, 11))
    before = copy_of(matrix)
    adam_rows_(matrix, torch.zeros_like(matrix.weight), step=STEP, tiles=SMALL)
    assert relative_error(matrix.exp_avg, 0.9 * before.exp_avg.double()) < EXACT
    assert bool((matrix.weight != before.weight).all())


def test_norms_and_copy_are_left_out_where_not_asked_for():
    matrix = make_matrix(5, (0, 4, 11))
    bare = replace(copy_of(matrix), shadow=None, norms=None, boundaries=())
    (grad,) = gradients(matrix.weight.shape, n=1)
    adam_rows_(matrix, grad, step=STEP, tiles=SMALL)
    adam_rows_(bare, grad, step=STEP, tiles=SMALL)
    assert torch.equal(bare.weight, matrix.weight)
    assert torch.equal(bare.exp_avg_sq, matrix.exp_avg_sq)


@pytest.mark.parametrize("flag", [torch.tensor(True), torch.tensor(1, dtype=torch.int32)])
def test_a_set_flag_leaves_every_tensor_as_it_was(flag: Tensor):
    matrix = make_matrix(5, (0, 4, 11))
    before = copy_of(matrix)
    poison = torch.full_like(matrix.weight, torch.nan)
    adam_rows_(matrix, poison, step=replace(STEP, skip=flag.to(DEVICE)), tiles=SMALL)
    for kept, original in zip(tensors_of(matrix), tensors_of(before)):
        assert torch.equal(kept, original)


def test_a_flag_that_is_not_set_changes_nothing():
    with_flag, without = make_matrix(5, (0, 4, 11)), make_matrix(5, (0, 4, 11))
    (grad,) = gradients(without.weight.shape, n=1)
    adam_rows_(with_flag, grad, step=replace(STEP, skip=torch.tensor(False, device=DEVICE)), tiles=SMALL)
    adam_rows_(without, grad, step=STEP, tiles=SMALL)
    for one, other in zip(tensors_of(with_flag), tensors_of(without)):
        assert torch.equal(one, other)


@pytest.mark.parametrize("boundaries", SOURCES)
def test_chunks_cover_each_source_and_no_other(boundaries: tuple[int, ...]):
    firsts = first_chunks(boundaries, columns=4)
    widths = [stop - start for start, stop in itertools.pairwise(boundaries)]
    counts = [after - before for before, after in itertools.pairwise(firsts)]
    assert all(4 * (n - 1) < width <= 4 * n for n, width in zip(counts, widths))
