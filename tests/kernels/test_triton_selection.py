"""Selections in Triton, against a sort in Python and against their definition: equal to the last entry."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crosscoders.kernels import reference
from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.kernels.triton import selection_batch
from crosscoders.kernels.triton.launch import SelectionSizes
from crosscoders.kernels.triton.selection import batch_topk, row_topk, threshold
from tests.kernels.sparse_cases import DEVICE, poisoned_memory

# At toy sizes: several blocks and parts of groups, and rows with more candidates than they can store.
SMALL = SelectionSizes(groups=8, part=4, run=2, capacity=8, block=8, items=2, num_warps=1)
SIZES = {
    "default": None,
    "no groups": SelectionSizes(groups=0, part=1, run=1, capacity=1, block=8, items=2, num_warps=1),
    "fewer groups than k": SelectionSizes(
        groups=2, part=1, run=4, capacity=64, block=16, items=16, num_warps=1
    ),
    "no room": SelectionSizes(groups=8, part=8, run=1, capacity=1, block=64, items=4, num_warps=1),
    "room for all": SelectionSizes(groups=16, part=4, run=4, capacity=128, block=16, items=16, num_warps=1),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CASES = [  # latents, k, type, whether scaled
    (13, 1, torch.float32, True),
    (13, 13, torch.bfloat16, False),
    (64, 20, torch.float32, False),
    (67, 5, torch.float32, True),
    (67, 5, torch.bfloat16, False),
    (67, 5, torch.bfloat16, True),
    (67, 5, torch.float16, False),
]
KINDS = ["normal", "ties", "negative", "few positive", "not finite"]


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    with poisoned_memory():
        yield


def make_row(kind: str, n_latents: int, generator: torch.Generator) -> Tensor:
    row = torch.randn(n_latents, generator=generator)
    if kind == "ties":
        row = torch.randint(-2, 3, (n_latents,), generator=generator).float()
    elif kind == "negative":
        row = -row.abs()
    elif kind == "few positive":
        row = -row.abs()
        row[[1, n_latents - 2]] = 0.5
    elif kind == "not finite":
        row[[0, 3, n_latents - 1]] = float("nan")
        row[[2, n_latents - 3]] = float("inf")
        row[4] = -float("inf")
    return row


def make_pre(n_latents: int, *, dtype: torch.dtype = torch.float32, kinds: list[str] = KINDS) -> Tensor:
    """Pre-activations with one row of each kind."""
    generator = torch.Generator().manual_seed(n_latents)
    return torch.stack([make_row(kind, n_latents, generator) for kind in kinds]).to(DEVICE, dtype)


def make_scale(n_latents: int) -> Tensor:
    """Few different factors, so that scaled scores are equal too, and some that leave no positive score."""
    generator = torch.Generator().manual_seed(1)
    return torch.tensor([0.5, 1.0, 3.0, -1.0])[torch.randint(4, (n_latents,), generator=generator)].to(DEVICE)


def scores_of(pre: Tensor, scale: Tensor | None) -> Tensor:
    """Scores as float32, and 0 for NaN."""
    scores = pre.float().relu() * (1.0 if scale is None else scale)
    return torch.where(scores > 0, scores, 0.0)


def brute_force(scores: Tensor, n: int) -> list[int]:
    """The first `n` positions by falling score and rising position, sorted."""
    flat = scores.double().flatten().tolist()
    return sorted(sorted(range(len(flat)), key=lambda i: (-flat[i], i))[:n])


def positions(latents: SparseLatents) -> list[int]:
    """Flat positions of all stored entries."""
    return (latents.rows() * latents.n_latents + latents.indices).tolist()


def assert_kept(latents: SparseLatents, pre: Tensor, *, expected: list[int], mask: Tensor) -> None:
    """The entries are the expected ones in order; their values are the pre-activations where they count."""
    assert positions(latents) == expected
    assert latents.values.dtype == torch.float32
    assert torch.equal(latents.to_dense(), torch.where(mask, pre.float(), 0.0))
    assert torch.equal(latents.values != 0, mask.flatten()[positions(latents)])


def check_rows(pre: Tensor, k: int, *, scale: Tensor | None, sizes: SelectionSizes | None) -> None:
    scores, n_latents = scores_of(pre, scale), pre.shape[1]
    expected = [n_latents * i + j for i, row in enumerate(scores) for j in brute_force(row, k)]
    latents = row_topk(pre, k, scale=scale, sizes=sizes)
    assert_kept(latents, pre, expected=expected, mask=reference.row_topk_mask(scores, k))
    assert latents.row_ptr.tolist() == list(range(0, k * pre.shape[0] + 1, k))


def check_batch(
    pre: Tensor, k: int, *, scale: Tensor | None, sizes: SelectionSizes | None, floor: Tensor | None = None
) -> None:
    scores = scores_of(pre, scale)
    mask = reference.batch_topk_mask(scores, k)
    latents, smallest = batch_topk(pre, k, scale=scale, sizes=sizes, floor=floor)
    assert_kept(latents, pre, expected=brute_force(scores, k * pre.shape[0]), mask=mask)
    assert float(smallest) == min(scores[mask].tolist(), default=float("inf"))


def check_threshold(pre: Tensor, level: Tensor, *, scale: Tensor | None, words: int | None) -> None:
    mask = reference.threshold_mask(scores_of(pre, scale), level)
    latents = threshold(pre, level, scale=scale, words=words)
    assert_kept(latents, pre, expected=mask.flatten().nonzero().squeeze(1).tolist(), mask=mask)


@pytest.mark.parametrize(("n_latents", "k", "dtype", "is_scaled"), CASES)
def test_row_topk_equals_brute_force(n_latents: int, k: int, dtype: torch.dtype, is_scaled: bool) -> None:
    pre = make_pre(n_latents, dtype=dtype)
    check_rows(pre, k, scale=make_scale(n_latents) if is_scaled else None, sizes=SMALL)


@pytest.mark.parametrize(("n_latents", "k", "dtype", "is_scaled"), CASES)
def test_batch_topk_equals_brute_force(n_latents: int, k: int, dtype: torch.dtype, is_scaled: bool) -> None:
    pre = make_pre(n_latents, dtype=dtype)
    check_batch(pre, k, scale=make_scale(n_latents) if is_scaled else None, sizes=SMALL)


@pytest.mark.parametrize("sizes", SIZES)
def test_sizes_never_change_the_result(sizes: str) -> None:
    pre = make_pre(37, kinds=["normal", "ties", "few positive"])
    check_rows(pre, 9, scale=None, sizes=SIZES[sizes])
    check_batch(pre, 9, scale=make_scale(37), sizes=SIZES[sizes], floor=torch.tensor(0.4, device=DEVICE))


def test_rows_wider_than_one_block_at_the_default_sizes() -> None:
    pre = make_pre(9001, dtype=torch.bfloat16, kinds=["normal", "ties"])
    check_rows(pre, 7, scale=None, sizes=None)
    check_batch(pre, 7, scale=None, sizes=None)


@pytest.mark.parametrize("value", [1.5, 0.0, -1.0])
def test_of_equal_scores_the_first_are_kept(value: float) -> None:
    pre = torch.full((3, 29), value, device=DEVICE)
    assert positions(row_topk(pre, 4, scale=None, sizes=SMALL)) == [*range(4), *range(29, 33), *range(58, 62)]
    latents, _ = batch_topk(pre, 4, scale=None, sizes=SMALL)
    assert positions(latents) == list(range(12))
    assert latents.values.tolist() == [max(value, 0.0)] * 12


@pytest.mark.parametrize("is_scaled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_that_differ_in_the_last_bit_are_told_apart(dtype: torch.dtype, is_scaled: bool) -> None:
    order = torch.randperm(21, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    pre, scale = (1 + order * torch.finfo(dtype).eps).to(dtype).expand(2, 21), None
    if is_scaled:
        pre, scale = torch.ones_like(pre), 1 + order * torch.finfo(torch.float32).eps
    check_rows(pre, 8, scale=scale, sizes=SMALL)
    check_batch(pre, 8, scale=scale, sizes=SMALL)


@pytest.mark.parametrize("kind", KINDS)
def test_one_row(kind: str) -> None:
    pre = make_pre(31, kinds=[kind])
    check_rows(pre, 4, scale=None, sizes=SMALL)
    check_batch(pre, 4, scale=None, sizes=SMALL)


def test_one_latent() -> None:
    pre = make_pre(1, kinds=["normal", "ties", "negative"])
    check_rows(pre, 1, scale=None, sizes=None)
    check_batch(pre, 1, scale=None, sizes=None)


def test_a_batch_may_keep_all_its_entries_in_one_row() -> None:
    pre = torch.rand(4, 37, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(0))
    pre[2] += 1
    check_batch(pre, 9, scale=None, sizes=SMALL)
    latents, _ = batch_topk(pre, 9, scale=None, sizes=SMALL)
    assert latents.row_ptr.tolist() == [0, 0, 0, 36, 36]


@pytest.mark.parametrize("floor", [-1.0, 1e-30, 0.95, 1.2, float("inf"), float("nan")])
def test_no_hint_changes_the_result(floor: float) -> None:
    """Given as a multiple of the smallest selected score."""
    pre = make_pre(31, kinds=["normal", "ties"])
    smallest = scores_of(pre, None).flatten().sort().values[-8]
    check_batch(pre, 4, scale=None, sizes=SMALL, floor=floor * smallest)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**20), floor=st.floats(0.0, 4.0, width=32), k=st.integers(1, 11))
def test_the_hint_never_changes_the_result(seed: int, floor: float, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randn(2, 11, generator=generator).mul(4).round().div(4).to(DEVICE)
    check_batch(pre, k, scale=None, sizes=SMALL, floor=torch.tensor(floor, device=DEVICE))


def test_a_good_hint_takes_the_place_of_the_bound() -> None:
    """Candidates are then what reaches 7/8 of it, which is more than reach the bound itself."""
    pre = make_pre(64, kinds=["normal"] * 3).sort().values[:, torch.arange(64).view(4, 8, 2).mT.flatten()]
    smallest = scores_of(pre, None).flatten().sort().values[-9]
    found = []
    for floor in (None, smallest, 4 * smallest, 0.1 * smallest):
        batch = selection_batch.new_batch(pre, 3, scale=None, sizes=SMALL)
        selection_batch.collect_candidates(batch, floor)
        found.append(int(batch.found.sum()))
    assert found[1] == int((pre >= 0.875 * smallest).sum()) > found[0] >= 9
    assert found[2] == found[3] == found[0]


def test_where_too_few_scores_are_positive_only_they_are_candidates() -> None:
    pre = make_pre(31, kinds=["few positive", "negative"])
    batch = selection_batch.new_batch(pre, 3, scale=None, sizes=SMALL)
    selection_batch.collect_candidates(batch, None)
    assert batch.found.tolist() == [2, 0]


@pytest.mark.parametrize("is_scaled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_threshold_equals_its_definition(dtype: torch.dtype, is_scaled: bool) -> None:
    pre = make_pre(67, dtype=dtype, kinds=["ties", "not finite"])
    scale = make_scale(67) if is_scaled else None
    check_threshold(pre, torch.tensor(0.5, device=DEVICE), scale=scale, words=2)
    check_threshold(pre, torch.linspace(-1, 2, 67, device=DEVICE), scale=scale, words=1)


@pytest.mark.parametrize("level", [-1.0, 0.0, 9e9, float("inf"), float("nan")])
def test_threshold_keeps_all_positive_scores_or_none(level: float) -> None:
    check_threshold(make_pre(33), torch.tensor(level, device=DEVICE), scale=None, words=2)


def test_threshold_at_the_default_sizes() -> None:
    check_threshold(make_pre(5003), torch.tensor(0.5, device=DEVICE), scale=None, words=None)


def test_rows_may_lie_apart_by_more_than_32_bits_can_count() -> None:
    """Most of this memory is never touched, so it takes no room."""
    stride = 2**30 + 1
    storage = torch.UntypedStorage(2 * (2 * stride + 13), device=DEVICE)
    pre = torch.tensor([], dtype=torch.bfloat16, device=DEVICE).set_(storage, 0, (3, 13), (stride, 1))
    pre.copy_(make_pre(13, kinds=["normal", "ties", "not finite"]))
    check_rows(pre, 3, scale=None, sizes=SMALL)
    check_batch(pre, 3, scale=None, sizes=SMALL)
    check_threshold(pre, torch.tensor(0.5, device=DEVICE), scale=None, words=1)


@pytest.mark.parametrize("k", [0, 14])
def test_k_must_fit_a_row(k: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and the 13 latents of a row, got {k}"):
        row_topk(make_pre(13), k, scale=None)
    with pytest.raises(ValueError, match="batch_topk: k"):
        batch_topk(make_pre(13), k, scale=None)


def test_tensors_must_be_readable() -> None:
    pre = make_pre(13)
    with pytest.raises(ValueError, match=r"row_topk.*float64"):
        row_topk(pre.double(), 1, scale=None)
    with pytest.raises(ValueError, match=r"contiguous rows.*\(13, 5\)"):
        batch_topk(pre.T, 1, scale=None)
    with pytest.raises(ValueError, match=r"scale must be 13 contiguous float32"):
        row_topk(pre, 1, scale=torch.ones(12, device=DEVICE))
    with pytest.raises(ValueError, match=r"threshold: expected one float32 number or 13"):
        threshold(pre, torch.ones(12, device=DEVICE), scale=None)


@pytest.mark.gpu
@pytest.mark.parametrize("is_scaled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_selections_equal_their_definition_at_real_widths(dtype: torch.dtype, is_scaled: bool) -> None:
    generator = torch.Generator(DEVICE).manual_seed(0)
    scale = torch.rand(32768, device=DEVICE, generator=generator) if is_scaled else None
    pre = torch.randn(512, 32768, device=DEVICE, generator=generator).to(dtype)
    scores, floor = scores_of(pre, scale), None
    mask = reference.batch_topk_mask(scores, 100)
    for _ in range(2):
        latents, floor = batch_topk(pre, 100, scale=scale, floor=floor)
        assert torch.equal(latents.to_dense(), torch.where(mask, pre.float(), 0.0))
        assert floor == scores[mask].min()
    mask = reference.row_topk_mask(scores, 100)
    assert torch.equal(row_topk(pre, 100, scale=scale).to_dense(), torch.where(mask, pre.float(), 0.0))
    level = torch.tensor(2.0, device=DEVICE)
    latents = threshold(pre, level, scale=scale)
    assert torch.equal(latents.to_dense(), torch.where(scores > level, pre.float(), 0.0))
