"""Selection on the CPU equals its definition: every dtype, width, grouping of rows and kind of score."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crosscoders.kernels import reference
from crosscoders.kernels.cpu import selection
from crosscoders.kernels.cpu.selection import BatchTopK, RowTopK

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# Blocks of 32, 16, 8 and 4 entries, and none: the factors of two in the width and the ratio of k decide.
WIDTHS = [1, 13, 96, 100, 256, 264]
KINDS = "continuous ties two_values none_positive few_positive all_equal tiny infinite zeros".split()


def scores_of(kind: str, n_rows: int, n_latents: int, *, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (n_rows, n_latents)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    scores = {
        "continuous": normal,
        "ties": (2 * normal).round(),
        "two_values": torch.where(uniform < 0.5, 1.0, 2.0),
        "none_positive": -uniform,
        "few_positive": torch.where(uniform < 0.02, normal, -1.0),
        "all_equal": torch.ones(shape),
        "tiny": normal.sign() * torch.finfo(dtype).smallest_normal * torch.where(uniform < 0.5, 1.0, 0.25),
        "infinite": torch.where(uniform < 0.1, math.inf, torch.where(uniform > 0.9, -math.inf, normal)),
        "zeros": torch.where(uniform < 0.5, 0.0, -0.0),
    }[kind]
    return scores.to(dtype)


def flat(mask: Tensor) -> list[int]:
    return mask.flatten().nonzero().squeeze(1).tolist()


def brute_force(values: list[float], k: int) -> set[int]:
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    return {i for i in order if values[i] > 0}


def in_groups(scores: Tensor, sizes: list[int]) -> Iterator[Tensor]:
    """Groups of rows in one memory, which the next group overwrites."""
    memory = torch.empty(max([*sizes, 1]), scores.shape[1], dtype=scores.dtype)
    for part in scores.split(sizes):
        yield memory[: len(part)].copy_(part)
        memory.fill_(99.0)


def by_selector(scores: Tensor, k: int, *, per_row: bool, sizes: list[int]) -> tuple[Tensor, Tensor]:
    n_latents = scores.shape[1]
    selector = RowTopK(k, n_latents=n_latents) if per_row else BatchTopK(k * len(scores), n_latents=n_latents)
    for part in in_groups(scores, sizes):
        selector.add(part)
    return selector.finish()


def check_all_ways(scores: Tensor, k: int, *, sizes: list[int]) -> None:
    for per_row, function, mask in (
        (True, selection.row_topk_indices, reference.row_topk_mask),
        (False, selection.batch_topk_indices, reference.batch_topk_mask),
    ):
        expected = flat(mask(scores, k))
        assert function(scores, k).tolist() == expected
        indices, kept = by_selector(scores, k, per_row=per_row, sizes=sizes)
        assert indices.tolist() == expected
        assert kept.tolist() == scores.flatten()[expected].tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_latents", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_selection_in_any_groups_equals_the_definition(
    kind: str, n_latents: int, dtype: torch.dtype
) -> None:
    scores = scores_of(kind, 9, n_latents, dtype=dtype)
    for k in sorted({1, min(2, n_latents), n_latents // 3 or 1, n_latents, n_latents + 3}):
        check_all_ways(scores, k, sizes=[2, 0, 1, 6])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_definition_equals_brute_force(kind: str, dtype: torch.dtype) -> None:
    scores = scores_of(kind, 4, 24, dtype=dtype)
    for k in (1, 5, 24):
        rows = {24 * i + j for i, row in enumerate(scores.tolist()) for j in brute_force(row, k)}
        assert flat(reference.row_topk_mask(scores, k)) == sorted(rows)
        batch = brute_force(scores.flatten().tolist(), 4 * k)
        assert flat(reference.batch_topk_mask(scores, k)) == sorted(batch)


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_selections_of_drawn_scores_equal_the_definition(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    sizes = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(lambda s: sum(s) > 0))
    n_latents = data.draw(st.sampled_from([1, 2, 7, 32, 48, 64, 128]))
    values = data.draw(st.lists(st.floats(-3, 3, width=16), min_size=1, max_size=6))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**16)))
    chosen = torch.randint(len(values), (sum(sizes), n_latents), generator=generator)
    scores = torch.tensor(values, dtype=torch.float64)[chosen].to(dtype)
    check_all_ways(scores, data.draw(st.integers(1, n_latents)), sizes=sizes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["continuous", "ties"])
def test_seventy_thousand_latents(kind: str, dtype: torch.dtype) -> None:
    check_all_ways(scores_of(kind, 3, 70_000, dtype=dtype), 32, sizes=[1, 2])


def test_more_rows_than_one_sort_key_holds() -> None:
    scores = scores_of("ties", 2**16 + 3, 32, dtype=torch.bfloat16)
    expected = reference.row_topk_mask(scores, 1).flatten().nonzero().squeeze(1)
    assert torch.equal(selection.row_topk_indices(scores, 1), expected)


@pytest.mark.parametrize("n_latents", [2**16, 2**17 - 1, 2**17])
def test_sort_keys_at_powers_of_two_keep_rows_and_latents_apart(n_latents: int) -> None:
    scores = torch.full((3, n_latents), -1.0)
    scores[:, -1] = torch.finfo(torch.float32).max
    scores[:, 0] = math.inf
    scores[1, n_latents // 2] = torch.finfo(torch.float32).smallest_normal
    check_all_ways(scores, 2, sizes=[3])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layout_and_gradient_do_not_matter(dtype: torch.dtype) -> None:
    scores = scores_of("ties", 6, 128, dtype=dtype)
    stored_by_column = scores.T.contiguous().T
    every_other = torch.zeros(12, 256, dtype=dtype)
    every_other[::2, ::2] = scores
    for other in (stored_by_column, every_other[::2, ::2], scores.clone().requires_grad_()):
        for function in (selection.row_topk_indices, selection.batch_topk_indices):
            assert torch.equal(function(other, 3), function(scores, 3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_latents", [13, 256])
def test_an_empty_batch_selects_nothing_row_by_row(n_latents: int, dtype: torch.dtype) -> None:
    assert selection.row_topk_indices(torch.zeros(0, n_latents, dtype=dtype), 3).tolist() == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_threshold_equals_its_definition(kind: str, dtype: torch.dtype) -> None:
    scores = scores_of(kind, 5, 33, dtype=dtype)
    for level in (-1.0, 0.0, 0.5, math.inf, math.nan):
        threshold = torch.tensor(level, dtype=dtype)
        expected = flat(reference.threshold_mask(scores, threshold))
        assert selection.threshold_indices(scores, threshold).tolist() == expected
    per_latent = scores_of("continuous", 1, 33, dtype=dtype)[0]
    expected = flat(reference.threshold_mask(scores, per_latent))
    assert selection.threshold_indices(scores, per_latent).tolist() == expected


def test_a_nan_is_never_kept_and_displaces_one_score_at_most() -> None:
    # Whether it takes a slot before it is dropped depends on its sign bit; what else is kept is the same.
    for seed in range(5):
        for sign in (1.0, -1.0):
            scores = scores_of("continuous", 4, 256, dtype=torch.float32, seed=seed)
            is_nan = torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed)) < 0.004
            scores[is_nan] = torch.tensor(math.nan).copysign(torch.tensor(sign))
            clean = torch.where(is_nan, -1.0, scores)
            for per_row in (True, False):
                kept = set(by_selector(scores, 3, per_row=per_row, sizes=[1, 3])[0].tolist())
                most = set(by_selector(clean, 3, per_row=per_row, sizes=[4])[0].tolist())
                assert not kept & set(flat(is_nan))
                assert kept <= most
                assert len(most - kept) <= int(is_nan.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_guess_changes_nothing_or_says_that_it_was_too_high(dtype: torch.dtype) -> None:
    scores = torch.randn(30, 64, generator=torch.Generator().manual_seed(5)).to(dtype)
    expected = reference.batch_topk_mask(scores, 3).flatten().nonzero().squeeze(1)
    smallest = float(scores.flatten()[expected].min())
    for guess in (0.0, 0.5 * smallest, smallest, 1.5 * smallest, 100.0):
        selector = selection.BatchTopK(3 * 30, n_latents=64, guess=guess)
        for part in scores.split(7):
            selector.add(part)
        assert selector.is_short or torch.equal(selector.finish()[0], expected)
        assert not (selector.is_short and guess <= smallest)
        assert selector.is_short or guess <= smallest or dtype is torch.float64
