"""Jackknife intervals: closed forms, and coverage on clustered data."""

import math

import pytest
import torch
from torch.testing import assert_close

from crosscoders.diffing.measures.jackknife import jackknife, leave_one_out, student_factor


def probability_within(t: float, *, degrees: int) -> float:
    """P(|T| < t) by Simpson's rule on the density of Student's distribution."""
    n = 20_000
    x = torch.linspace(0, t, n + 1, dtype=torch.float64)
    log_norm = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
    density = torch.exp(log_norm - (degrees + 1) / 2 * torch.log1p(x.square() / degrees))
    weights = torch.ones(n + 1, dtype=torch.float64)
    weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
    return float(2 * (density * weights).sum() * t / n / 3)


@pytest.mark.parametrize(("n_blocks", "tolerance"), [(2, 1e-6), (3, 1e-6), (4, 1e-3), (10, 1e-5), (20, 1e-6)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_student_factor_inverts_the_distribution(n_blocks: int, tolerance: float, confidence: float) -> None:
    t = student_factor(n_blocks, confidence=confidence)
    assert abs(probability_within(t, degrees=n_blocks - 1) - confidence) < tolerance


def test_jackknife_of_a_mean_is_its_student_interval(generator: torch.Generator) -> None:
    values = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    got = jackknife(values.mean(0), leave_one_out(values) / 19)
    half = student_factor(20) * values.std(dim=0) / math.sqrt(20)
    assert_close(got.low, values.mean(0) - half)
    assert_close(got.high, values.mean(0) + half)


def test_intervals_cover_a_ratio_of_clustered_sums(generator: torch.Generator) -> None:
    """1,000 data sets of 20 blocks: y = 2 x + a block's own noise."""
    x = 1 + torch.rand(20, 1000, generator=generator, dtype=torch.float64)
    y = 2 * x + 0.5 * torch.randn(20, 1000, generator=generator, dtype=torch.float64)
    got = jackknife(y.sum(0) / x.sum(0), leave_one_out(y) / leave_one_out(x))
    coverage = float(((got.low < 2) & (got.high > 2)).double().mean())
    assert 0.93 < coverage < 0.97


def test_undefined_stays_undefined_and_thresholds_need_the_whole_interval() -> None:
    left_out = torch.tensor([[1.0, math.nan], [1.2, 1.0]], dtype=torch.float64)
    got = jackknife(torch.tensor([1.1, 1.0], dtype=torch.float64), left_out)
    assert bool(got.low[0].isfinite())
    assert bool(got.low[1].isnan())
    assert got.is_above(-10.0).tolist() == [True, False]
    assert got.is_below(1.5).tolist() == [False, False]
    with pytest.raises(ValueError, match="at least 2 blocks"):
        student_factor(1)
