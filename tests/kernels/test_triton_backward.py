"""Backward passes in Triton, against dense float64 products; with Adam, against the two one by one."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import no_type_check

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from crosscoders.kernels.adam import AdamMatrix, AdamStep
from crosscoders.kernels.sparse_latents import LatentMajor, SparseLatents, latent_major
from crosscoders.kernels.triton.adam import adam_rows_
from crosscoders.kernels.triton.backward import (
    decoder_backward,
    decoder_backward_adam_,
    encoder_backward,
    encoder_backward_adam_,
)
from crosscoders.kernels.triton.gather import latent_entries, split_piece
from crosscoders.kernels.triton.tiles import Tiles
from tests.kernels.sparse_cases import (
    DEVICE,
    PATTERNS,
    SMALL,
    Case,
    copy_of,
    make_case,
    make_matrix,
    poisoned_memory,
    relative_error,
    tensors_of,
)
from tests.kernels.tolerances import RELATIVE_ERROR

EXACT = RELATIVE_ERROR[torch.float32]
DTYPES = [torch.float32, torch.bfloat16]
STEP = AdamStep(lr=1e-2, beta1=0.9, beta2=0.999, eps=1e-8, n=3)


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    with poisoned_memory():
        yield


def assert_decoder_gradients(case: Case, got: tuple[Tensor, Tensor, Tensor]) -> None:
    grad_values, grad_W_dec, squares = got
    grad_latents = case.x.double() @ case.weight.double().T
    expected = case.dense.T @ case.x.double()
    assert relative_error(grad_values, grad_latents[case.latents.rows(), case.latents.indices]) < EXACT
    assert relative_error(grad_W_dec, expected) < EXACT
    assert relative_error(squares, expected.square().sum()) < EXACT


def assert_encoder_gradients(case: Case, got: tuple[Tensor, Tensor, Tensor]) -> None:
    grad_W_enc, grad_b_enc, squares = got
    expected = case.dense.T @ case.x.double()
    assert relative_error(grad_W_enc, expected) < EXACT
    assert relative_error(grad_b_enc, case.dense.sum(dim=0)) < EXACT
    assert relative_error(squares, expected.square().sum()) < EXACT


@pytest.mark.parametrize("pattern", PATTERNS)
def test_decoder_backward_equals_the_dense_products(pattern: str):
    case = make_case(pattern)
    for tiles in (SMALL, None):
        got = decoder_backward(case.x, case.latents, case.by_latent, W_dec=case.weight, tiles=tiles)
        assert_decoder_gradients(case, got)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_encoder_backward_equals_the_dense_products(pattern: str):
    case = make_case(pattern)
    for tiles in (SMALL, None):
        got = encoder_backward(case.latents.values, case.x, case.by_latent, tiles=tiles)
        assert_encoder_gradients(case, got)


@pytest.mark.parametrize("grad_dtype", DTYPES)
@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 8, 21])
def test_gradients_are_float32_at_any_width_and_input_dtype(
    width: int, weight_dtype: torch.dtype, grad_dtype: torch.dtype
):
    case = make_case("hot", width=width, dtype=weight_dtype)
    case = replace(case, x=case.x.to(grad_dtype))
    decoder = decoder_backward(case.x, case.latents, case.by_latent, W_dec=case.weight, tiles=SMALL)
    encoder = encoder_backward(case.latents.values, case.x, case.by_latent, tiles=SMALL)
    assert_decoder_gradients(case, decoder)
    assert_encoder_gradients(case, encoder)
    assert {tensor.dtype for tensor in (*decoder, *encoder)} == {torch.float32}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("split", [1, 2, 3, 5])
def test_gradients_do_not_depend_on_where_latents_are_split(split: int, seed: int):
    case = make_case("hot_neighbors", seed=seed, width=5)
    tiles = Tiles(columns=8, entries=2, split=split)
    assert_decoder_gradients(
        case, decoder_backward(case.x, case.latents, case.by_latent, W_dec=case.weight, tiles=tiles)
    )
    assert_encoder_gradients(case, encoder_backward(case.latents.values, case.x, case.by_latent, tiles=tiles))


@triton.jit
@no_type_check
def _pieces_kernel(entries, pieces, SPLIT: tl.constexpr):
    slot = tl.program_id(0)
    latent, start, stop = split_piece(entries, slot, SPLIT)
    tl.store(pieces + 3 * slot, latent)
    tl.store(pieces + 3 * slot + 1, start)
    tl.store(pieces + 3 * slot + 2, stop)


@pytest.mark.parametrize("split", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "counts", [[0, 9, 1, 8, 0, 2, 3, 4, 0], [30], [7, 7, 7], [8, 1, 8, 8], [6, 0, 1], [0, 3]]
)
def test_pieces_cover_each_entry_of_a_large_latent_once_and_no_other(counts: list[int], split: int):
    col_ptr = torch.tensor([0, *itertools.accumulate(counts)], device=DEVICE)
    everything = torch.arange(sum(counts), device=DEVICE)
    by_latent = LatentMajor(order=everything, rows=0 * everything, col_ptr=col_ptr)
    entries = latent_entries(torch.ones(1, 1, device=DEVICE), everything.float(), by_latent, split=split)
    pieces = torch.empty((2 * entries.n_windows, 3), dtype=torch.int64, device=DEVICE)
    _pieces_kernel[(2 * entries.n_windows,)](entries, pieces, SPLIT=split)
    covered = [(latent, j) for latent, start, stop in pieces.tolist() for j in range(start, stop)]
    expected = [
        (latent, j)
        for latent, (start, stop) in enumerate(itertools.pairwise(col_ptr.tolist()))
        for j in range(start, stop)
        if stop - start > split
    ]
    assert sorted(covered) == expected
    assert max((stop - start for _, start, stop in pieces.tolist())) <= split


def test_a_latent_with_thousands_of_entries_is_summed_whole():
    values = torch.rand(1500, 2, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    latents = SparseLatents.from_dense(values)
    x = torch.ones(1500, 1, device=DEVICE)
    grad, bias, _ = encoder_backward(latents.values, x, latent_major(latents))
    assert relative_error(bias, values.double().sum(dim=0)) < EXACT
    assert relative_error(grad[:, 0], values.double().sum(dim=0)) < EXACT


def test_a_latent_without_entries_gets_exactly_zero():
    case = make_case("no_latents")
    unused = torch.bincount(case.latents.indices, minlength=case.weight.shape[0]) == 0
    grad_W_dec = decoder_backward(case.x, case.latents, case.by_latent, W_dec=case.weight, tiles=SMALL)[1]
    grad_W_enc, grad_b_enc, _ = encoder_backward(case.latents.values, case.x, case.by_latent, tiles=SMALL)
    assert int(unused.sum()) >= 4
    assert not bool(grad_W_dec[unused].any() or grad_W_enc[unused].any() or grad_b_enc[unused].any())


@pytest.mark.parametrize("with_adam", [False, True])
def test_running_twice_gives_the_same_bits(with_adam: bool):
    case = make_case("hot", dtype=torch.bfloat16)
    runs: list[list[Tensor]] = []
    for _ in range(2):
        if with_adam:
            matrix = make_matrix(9, (0, 4, 11))
            got = decoder_backward_adam_(case.x, case.latents, case.by_latent, matrix=matrix, step=STEP)
            runs.append([*got, *tensors_of(matrix)])
        else:
            runs.append(list(decoder_backward(case.x, case.latents, case.by_latent, W_dec=case.weight)))
    assert all(torch.equal(first, second) for first, second in zip(*runs))


@pytest.mark.parametrize(
    ("pattern", "boundaries"),
    [
        ("mixed", (0, 11)),
        ("hot", (0, 4, 11)),
        ("hot", (0, 1, 9, 11)),
        ("mixed", (0, 2, 3, 10, 11)),
        ("none", (0, 4, 11)),
    ],
)
def test_fused_decoder_backward_equals_backward_then_adam(pattern: str, boundaries: tuple[int, ...]):
    case = make_case(pattern)
    fused, separate = make_matrix(9, boundaries), make_matrix(9, boundaries)
    step = replace(STEP, grad_scale=torch.tensor(0.3, device=DEVICE))
    expected, grad, square = decoder_backward(case.x, case.latents, case.by_latent, W_dec=separate.weight)
    adam_rows_(separate, grad, step=step)
    for tiles in (SMALL, None):
        matrix = copy_of(fused)
        got, got_square = decoder_backward_adam_(
            case.x, case.latents, case.by_latent, matrix=matrix, step=step, tiles=tiles
        )
        assert relative_error(got, expected) < EXACT
        torch.testing.assert_close(got_square, square, rtol=1e-6, atol=0)
        for updated, reference in zip(tensors_of(matrix), tensors_of(separate)):
            assert relative_error(updated, reference) < RELATIVE_ERROR[updated.dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", ["mixed", "hot", "none", "one_token"])
def test_fused_encoder_backward_equals_backward_then_adam(pattern: str, dtype: torch.dtype):
    case = make_case(pattern, dtype=dtype)
    fused, separate = make_matrix(9, None), make_matrix(9, None)
    grad, expected, square = encoder_backward(case.latents.values, case.x, case.by_latent)
    adam_rows_(separate, grad, step=STEP)
    for tiles in (SMALL, None):
        matrix = copy_of(fused)
        got, got_square = encoder_backward_adam_(
            case.latents.values, case.x, case.by_latent, matrix=matrix, step=STEP, tiles=tiles
        )
        assert relative_error(got, expected) < EXACT
        torch.testing.assert_close(got_square, square, rtol=1e-6, atol=0)
        for updated, reference in zip(tensors_of(matrix), tensors_of(separate)):
            assert relative_error(updated, reference) < RELATIVE_ERROR[updated.dtype]


def test_fused_gradients_of_values_are_those_of_the_weights_before_the_update():
    case = make_case("hot")
    matrix = make_matrix(9, (0, 4, 11))
    old = matrix.weight.clone()
    step = replace(STEP, lr=10.0)
    got, _ = decoder_backward_adam_(
        case.x, case.latents, case.by_latent, matrix=matrix, step=step, tiles=SMALL
    )
    of_old, of_new = (
        (case.x.double() @ weight.double().T)[case.latents.rows(), case.latents.indices]
        for weight in (old, matrix.weight)
    )
    assert relative_error(got, of_old) < EXACT < 0.1 < relative_error(got, of_new)


@pytest.mark.parametrize("flag", [torch.tensor(True), torch.tensor(1, dtype=torch.int32)])
def test_a_set_flag_leaves_the_matrix_as_it_was(flag: Tensor):
    case = make_case("hot")
    matrix = make_matrix(9, (0, 4, 11))
    before = copy_of(matrix)
    step = replace(STEP, skip=flag.to(DEVICE), grad_scale=torch.tensor(torch.nan, device=DEVICE))
    values, _ = decoder_backward_adam_(
        case.x, case.latents, case.by_latent, matrix=matrix, step=step, tiles=SMALL
    )
    encoder_backward_adam_(case.latents.values, case.x, case.by_latent, matrix=matrix, step=step, tiles=SMALL)
    assert bool(values.isfinite().all())
    for kept, original in zip(tensors_of(matrix), tensors_of(before)):
        assert torch.equal(kept, original)


@pytest.mark.slow
def test_gathered_rows_may_lie_beyond_32_bit_offsets():
    width, n_rows = 1 << 16, (1 << 15) + 2
    x = torch.empty((n_rows, width), dtype=torch.bfloat16, device=DEVICE)  # 4.3 GB
    x[-1] = 2.0
    grad, _, _ = encoder_backward(
        torch.ones(1, device=DEVICE), x, one_entry(n_rows - 1, 0, n_latents=1), tiles=Tiles(columns=1024)
    )
    assert torch.equal(grad, torch.full((1, width), 2.0, device=DEVICE))


@pytest.mark.gpu
def test_written_rows_may_lie_beyond_32_bit_offsets():
    """Not on the CPU: 2^31 elements take 9 GB for the gradient alone, and five minutes."""
    width, n_latents, names = 1 << 14, (1 << 17) + 2, ("weight", "exp_avg", "exp_avg_sq")
    matrix = AdamMatrix(**{name: torch.zeros((n_latents, width), device=DEVICE) for name in names})
    by_latent, one = one_entry(0, n_latents - 1, n_latents=n_latents), torch.ones(1, device=DEVICE)
    x = torch.ones((1, width), device=DEVICE)
    grad, _, _ = encoder_backward(one, x, by_latent)
    encoder_backward_adam_(one, x, by_latent, matrix=matrix, step=replace(STEP, n=1))
    torch.testing.assert_close(matrix.weight[-1:], -STEP.lr * x)
    adam_rows_(matrix, grad, step=replace(STEP, n=2))
    torch.testing.assert_close(matrix.weight[-1:], -2 * STEP.lr * x)
    assert torch.equal(grad[-1:], x)
    assert not bool(grad[:-1].any() | matrix.weight[:-1].any())


def one_entry(row: int, latent: int, *, n_latents: int) -> LatentMajor:
    """A single entry, sorted by latent."""
    bounds = torch.arange(n_latents + 1, device=DEVICE)
    return LatentMajor(
        order=torch.zeros(1, dtype=torch.int64, device=DEVICE),
        rows=torch.full((1,), row, device=DEVICE),
        col_ptr=(bounds > latent).long(),
    )
