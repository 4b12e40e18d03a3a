"""Wrongly paired rows are found whatever the widths and the order; right pairs pass."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from crosscoders.diffing.batches import MeasureBatch
from crosscoders.diffing.measures.alignment import Alignment, alignment
from crosscoders.harvest import load_sources
from crosscoders.sources import Source
from tests.data.toy_models import random_tokens, toy_model

POS = 20


def sources_of(*widths: int) -> tuple[Source, ...]:
    return tuple(Source(name=f"s{i}", d_model=d) for i, d in enumerate(widths))


def related_rows(*widths: int, n_sequences: int = 60, keep: float = 0.5, seed: int = 0) -> Tensor:
    """Each source is a bent image of one hidden process that remembers `keep` of its last token."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n_sequences, POS, 24, generator=generator)
    hidden = [noise[:, 0]]
    for token in range(1, POS):
        hidden.append(keep * hidden[-1] + math.sqrt(1 - keep**2) * noise[:, token])
    flat = torch.stack(hidden, dim=1).flatten(0, 1)
    images = [torch.tanh(0.2 * flat @ torch.randn(24, d, generator=generator)) for d in widths]
    return torch.cat([3.0 * x + 0.1 * torch.randn(x.shape, generator=generator) for x in images], dim=1)


def batches_of(rows: Tensor, *, sequences_per_batch: int = 7) -> list[MeasureBatch]:
    sequence = torch.arange(len(rows)) // POS
    size = sequences_per_batch * POS
    return [MeasureBatch(rows=r, sequence=s) for r, s in zip(rows.split(size), sequence.split(size))]


def measured(rows: Tensor, widths: tuple[int, ...], **options: Any) -> Alignment:
    generator = torch.Generator().manual_seed(3)
    return alignment(batches_of(rows), sources_of(*widths), generator=generator, **options)


def misaligned(rows: Tensor, first: int, *, how: str) -> Tensor:
    """The same rows with those of the second source out of order."""
    order = {
        "permuted": torch.randperm(len(rows), generator=torch.Generator().manual_seed(5)),
        "one token late": torch.arange(len(rows)).view(-1, POS).roll(1, dims=1).flatten(),
        "two tokens early": torch.arange(len(rows)).view(-1, POS).roll(-2, dims=1).flatten(),
        "one sequence late": torch.arange(len(rows)).roll(POS),
        "within sequences": torch.stack(
            [torch.randperm(POS) + i for i in range(0, len(rows), POS)]
        ).flatten(),
    }[how]
    return torch.cat([rows[:, :first], rows[order][:, first:]], dim=1)


def brute_force(x: Tensor, y: Tensor, is_even: Tensor) -> float:
    """Ridge by least squares on rows with the penalty appended as further rows."""
    x, y = ((z.double() - z.double().mean(0)) / z.double().std(0, correction=0) for z in (x, y))
    errors = variances = torch.zeros((), dtype=torch.float64)
    for fit, test in ((is_even, ~is_even), (~is_even, is_even)):
        penalty = math.sqrt(0.01 * int(fit.sum())) * torch.eye(x.shape[1], dtype=torch.float64)
        inputs = torch.cat([x[fit] - x[fit].mean(0), penalty])
        targets = torch.cat([y[fit] - y[fit].mean(0), penalty.new_zeros(len(penalty), y.shape[1])])
        weights = torch.linalg.lstsq(inputs, targets).solution
        predicted = (x[test] - x[fit].mean(0)) @ weights + y[fit].mean(0)
        errors = errors + (y[test] - predicted).square().sum()
        variances = variances + (y[test] - y[test].mean(0)).square().sum()
    return float(1 - errors / variances)


def test_r_squared_matches_least_squares_on_the_rows() -> None:
    rows = related_rows(8, 12) + 5.0
    found = measured(rows, (8, 12))
    is_even = torch.arange(len(rows)) // POS % 2 == 0
    x, y = rows[:, :8], rows[:, 8:]
    expected = (brute_force(x, y, is_even), brute_force(y, x, is_even))
    assert found.r_squared == pytest.approx(expected, rel=1e-9)
    assert found.n_rows == len(rows)


@pytest.mark.parametrize("widths", [(64, 96), (16, 16), (96, 24)])
def test_right_pairs_pass(widths: tuple[int, int]) -> None:
    found = measured(related_rows(*widths), widths)
    assert found.is_aligned, found.message
    assert found.message.startswith("sources aligned: s0 to s1: held-out R^2 0.")
    assert max(found.permuted) < 0.02


HOW = ["permuted", "one token late", "two tokens early", "one sequence late", "within sequences"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("widths", [(64, 96), (16, 16)])
@pytest.mark.parametrize("keep", [0.0, 0.9])
def test_rows_out_of_order_are_found(how: str, widths: tuple[int, int], keep: float) -> None:
    rows = related_rows(*widths, keep=keep)
    assert measured(rows, widths).is_aligned
    found = measured(misaligned(rows, widths[0], how=how), widths)
    assert not found.is_aligned, found.message
    assert found.message.startswith("sources not aligned: ")


@pytest.mark.parametrize("how", HOW)
def test_a_model_against_itself_passes_unless_its_rows_are_permuted(how: str) -> None:
    rows = related_rows(32).repeat(1, 2)
    assert min(measured(rows, (32, 32)).r_squared) > 0.95
    assert measured(rows, (32, 32)).is_aligned
    assert not measured(misaligned(rows, 32, how=how), (32, 32)).is_aligned


@pytest.mark.parametrize("d_model", [16, 24])
def test_two_language_models_on_one_text_pass_and_permuted_rows_do_not(d_model: int) -> None:
    models = {"base": toy_model(), "distilled": toy_model(d_model=d_model, seed=1)}
    both = load_sources(models, hook_name="blocks.0.hook_resid_pre")
    rows = both.harvest(random_tokens(64, POS)).flatten(0, 1)

    def verdict(rows: Tensor) -> bool:
        generator = torch.Generator().manual_seed(0)
        return alignment(batches_of(rows), both.sources, generator=generator).is_aligned

    assert verdict(rows)
    assert not verdict(misaligned(rows, 16, how="permuted"))
    assert not verdict(misaligned(rows, 16, how="one token late"))


def test_units_and_offsets_of_the_columns_do_not_matter() -> None:
    rows = related_rows(8, 12)
    factor = 10.0 ** torch.linspace(-3, 3, 20)
    found, other = measured(rows, (8, 12)), measured(rows.double() * factor + 100 * factor, (8, 12))
    assert other.r_squared == pytest.approx(found.r_squared, abs=1e-6)
    assert other.permuted == pytest.approx(found.permuted, abs=1e-6)


def test_a_constant_column_changes_nothing() -> None:
    rows = related_rows(8, 12)
    wider = torch.cat([torch.full((len(rows), 1), 7.0), rows], dim=1)
    found, other = measured(rows, (8, 12)), measured(wider, (9, 12))
    assert other.r_squared == pytest.approx(found.r_squared, rel=1e-9)


def test_how_the_batches_are_cut_does_not_matter() -> None:
    rows = related_rows(8, 12)

    def cut(sequences_per_batch: int) -> Alignment:
        batches = batches_of(rows, sequences_per_batch=sequences_per_batch)
        return alignment(batches, sources_of(8, 12), generator=torch.Generator().manual_seed(0))

    assert cut(1).r_squared == pytest.approx(cut(60).r_squared, rel=1e-9)
    assert cut(1).shifted == pytest.approx(cut(60).shifted, rel=1e-9)
    assert cut(1).is_aligned


def test_any_two_of_several_sources_can_be_compared() -> None:
    rows = torch.cat([related_rows(8, 12), related_rows(10, seed=9)], dim=1)
    assert measured(rows, (8, 12, 10), pair=("s0", "s1")).is_aligned
    assert measured(rows, (8, 12, 10), pair=("s1", "s0")).is_aligned
    found = measured(rows, (8, 12, 10))
    assert found.pair == ("s0", "s2")
    assert not found.is_aligned


def test_both_directions_must_hold() -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(1200, 40, generator=generator)
    found = measured(torch.cat([wide[:, :1], wide], dim=1), (1, 40))
    assert found.gain[0] < 0.1 < found.gain[1]
    assert not found.is_aligned


def test_rows_without_neighbors_are_judged_against_permuted_ones() -> None:
    rows = related_rows(8, 12)
    batches = [MeasureBatch(rows=r, sequence=torch.arange(100)) for r in rows.split(100)]
    found = alignment(batches, sources_of(8, 12), generator=torch.Generator().manual_seed(0))
    assert all(math.isnan(value) for value in found.shifted)
    assert found.is_aligned


def test_permuted_rows_never_reach_the_margin() -> None:
    gains = []
    for seed in range(40):
        rows = torch.randn(400, 8, generator=torch.Generator().manual_seed(seed))
        found = alignment(batches_of(rows), sources_of(4, 4), generator=torch.Generator().manual_seed(seed))
        gains.append(max(found.gain))
    assert max(gains) < 0.1


def test_bad_input_is_refused() -> None:
    rows = related_rows(8, 12)
    with pytest.raises(ValueError, match="needs two different sources, got"):
        measured(rows, (8, 12), pair=("s0", "s0"))
    with pytest.raises(ValueError, match="no source is named 'x'"):
        measured(rows, (8, 12), pair=("s0", "x"))
    with pytest.raises(ValueError, match=r"needs 200 rows or more .* got 200 and 180"):
        measured(rows[:380], (8, 12))
    with pytest.raises(ValueError, match="NaN or infinity"):
        measured(rows.index_fill(0, torch.tensor([3]), math.nan), (8, 12))
    with pytest.raises(ValueError, match="a source is constant"):
        measured(torch.cat([rows[:, :8], torch.ones(len(rows), 12)], dim=1), (8, 12))
