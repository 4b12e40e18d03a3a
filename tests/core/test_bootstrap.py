"""Bootstrap intervals of means over prompts: pairs, coverage, and what is undefined."""

import numpy as np
import pytest
import torch

from crosscoders.bootstrap import bootstrap_counts, bootstrap_mean


def test_intervals_resample_prompts_and_keep_pairs_together() -> None:
    rng = np.random.default_rng(0)
    level = rng.normal(size=40) * 10
    values = torch.tensor(level + rng.normal(size=40))
    counts = bootstrap_counts(40, n_bootstrap=4000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(counts.sum(dim=1), torch.full((4000,), 40.0, dtype=torch.float64))
    draws = rng.integers(0, 40, size=(4000, 40))
    by_hand = np.quantile(values.numpy()[draws].mean(axis=1), [0.025, 0.975])
    found = bootstrap_mean(values, counts)
    assert found.mean == pytest.approx(values.mean().item())
    assert [found.low, found.high] == pytest.approx(by_hand, abs=0.25)
    paired = bootstrap_mean(values - torch.tensor(level), counts)
    assert paired.high - paired.low < 0.2 * (found.high - found.low)


def test_intervals_cover_the_true_mean_about_as_often_as_they_say() -> None:
    generator, n_covered = torch.Generator().manual_seed(0), 0
    for _ in range(300):
        values = torch.rand(60, generator=generator, dtype=torch.float64)
        counts = bootstrap_counts(60, n_bootstrap=300, generator=generator)
        found = bootstrap_mean(values, counts, confidence=0.9)
        n_covered += found.low <= 0.5 <= found.high
    assert 0.84 < n_covered / 300 < 0.95


def test_undefined_values_are_left_out_and_counted() -> None:
    counts = bootstrap_counts(3, n_bootstrap=200, generator=torch.Generator().manual_seed(0))
    some = bootstrap_mean(torch.tensor([1.0, float("nan"), 3.0]), counts)
    assert (some.mean, some.n) == (2.0, 2)
    assert np.isnan(some.low)  # one resample in 27 draws the undefined prompt alone
    none = bootstrap_mean(torch.full((3,), float("nan")), counts)
    assert none.n == 0
    assert np.isnan(none.mean)
    assert not none.is_above_zero
    assert not none.is_below_zero


def test_one_value_has_no_interval() -> None:
    counts = bootstrap_counts(3, n_bootstrap=200, generator=torch.Generator().manual_seed(0))
    nan = float("nan")
    one = bootstrap_mean(torch.tensor([nan, 2.0, nan]), counts)
    assert (one.mean, one.n) == (2.0, 1)
    assert np.isnan([one.low, one.high]).all()
    alone = bootstrap_mean(torch.tensor([2.0]), torch.ones(50, 1, dtype=torch.float64))
    assert not alone.is_above_zero
