"""Sparse decoding in Triton, against dense float64 products."""

from collections.abc import Iterator

import pytest
import torch

from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.kernels.triton.decode import decode, decode_residual
from tests.kernels.sparse_cases import DEVICE, PATTERNS, SMALL, make_case, poisoned_memory, relative_error
from tests.kernels.tolerances import RELATIVE_ERROR

EXACT = RELATIVE_ERROR[torch.float32]


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    with poisoned_memory():
        yield


@pytest.mark.parametrize("pattern", PATTERNS)
def test_decode_equals_the_dense_product(pattern: str):
    case = make_case(pattern)
    expected = case.dense @ case.weight.double()
    assert relative_error(decode(case.latents, case.weight, tiles=SMALL), expected) < EXACT
    assert relative_error(decode(case.latents, case.weight), expected) < EXACT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 8, 16, 21])
def test_decode_adds_the_bias_at_any_width(width: int, dtype: torch.dtype):
    case = make_case("mixed", width=width, dtype=dtype)
    decoded = decode(case.latents, case.weight, bias=case.bias, tiles=SMALL)
    assert relative_error(decoded, case.dense @ case.weight.double() + case.bias.double()) < EXACT


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pattern", ["mixed", "no_rows", "none", "one_token"])
def test_residual_and_its_squares_equal_the_definition(
    pattern: str, weight_dtype: torch.dtype, x_dtype: torch.dtype
):
    case = make_case(pattern, dtype=weight_dtype)
    x = case.x.to(x_dtype)
    expected = case.dense @ case.weight.double() + case.bias.double() - x.double()
    residual, squares = decode_residual(case.latents, case.weight, b_dec=case.bias, x=x, tiles=SMALL)
    assert residual.dtype == squares.dtype == torch.float32
    assert relative_error(residual, expected) < EXACT
    assert relative_error(squares, expected.square().sum()) < EXACT


def test_squares_are_those_of_the_residual_before_rounding():
    case = make_case("mixed")
    exact, squares = decode_residual(case.latents, case.weight, b_dec=case.bias, x=case.x, tiles=SMALL)
    rounded, same_squares = decode_residual(
        case.latents, case.weight, b_dec=case.bias, x=case.x, out_dtype=torch.bfloat16, tiles=SMALL
    )
    assert rounded.dtype == torch.bfloat16
    assert 0 < relative_error(rounded, exact) < RELATIVE_ERROR[torch.bfloat16]
    assert torch.equal(squares, same_squares)


def test_decode_takes_rows_that_are_not_contiguous():
    case = make_case("mixed")
    doubled = torch.stack((case.weight, torch.full_like(case.weight, torch.nan)), dim=2).flatten(1)[:, ::2]
    assert not doubled.is_contiguous()
    assert torch.equal(
        decode(case.latents, doubled, tiles=SMALL), decode(case.latents, case.weight, tiles=SMALL)
    )


def test_decode_reads_no_row_that_is_not_named():
    case = make_case("no_latents")
    unused = case.dense.abs().sum(dim=0) == 0
    poisoned = case.weight.masked_fill(unused[:, None], torch.nan)
    stored = torch.bincount(case.latents.indices, minlength=len(unused)) > 0
    poisoned[stored] = case.weight[stored]
    decoded = decode(case.latents, poisoned, tiles=SMALL)
    assert bool(poisoned.isnan().any())
    assert bool(decoded.isfinite().all())


def test_decoding_twice_gives_the_same_bits():
    case = make_case("all", dtype=torch.bfloat16)
    runs = [decode_residual(case.latents, case.weight, b_dec=case.bias, x=case.x) for _ in range(2)]
    assert all(torch.equal(first, second) for first, second in zip(*runs))


@pytest.mark.slow
def test_decode_reaches_rows_beyond_32_bit_offsets():
    width, n_latents = 1 << 16, (1 << 15) + 2
    weight = torch.empty((n_latents, width), dtype=torch.bfloat16, device=DEVICE)  # 4.3 GB
    weight[-1] = 2.0
    index = torch.tensor([n_latents - 1], device=DEVICE)
    latents = SparseLatents(
        torch.ones(1, device=DEVICE), index, torch.tensor([0, 1], device=DEVICE), n_latents
    )
    assert torch.equal(decode(latents, weight), torch.full((1, width), 2.0, device=DEVICE))
