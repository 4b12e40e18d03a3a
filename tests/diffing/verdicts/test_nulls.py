"""What a null expects, matched by firing frequency."""

import math

import pytest
import torch

from crosscoders.bootstrap import wilson_interval
from crosscoders.diffing.verdicts import NullReference, null_reference


def reference() -> NullReference:
    """Of latents that fire on 1% of tokens 1 in 10 is called specific, of those on 0.01% 9 in 10."""
    frequency = torch.tensor([0.012] * 20 + [0.00012] * 10 + [0.0] * 5).double()
    specific = torch.tensor([True] * 2 + [False] * 18 + [True] * 9 + [False] + [True] * 5)
    return null_reference("drift", [frequency], [specific])


def test_latents_that_never_fire_are_left_out():
    found = reference()
    assert (found.total_live, found.total_false) == (30, 11)


def test_expectation_matches_by_frequency():
    expected, at_most = reference().expected(torch.full((50,), 0.013).double())
    assert expected == pytest.approx(50 * 0.1)
    assert at_most == pytest.approx(50 * wilson_interval(11, 30)[1])


def test_a_frequency_that_the_null_lacks_takes_the_rate_over_all():
    expected, _ = reference().expected(torch.tensor([0.9]).double())
    assert expected == pytest.approx(11 / 30)


def test_pooling_adds_up():
    one = torch.tensor([0.01, 0.02]).double()
    pooled = null_reference("drift", [one, one], [torch.tensor([True, False]), torch.tensor([False, False])])
    assert (pooled.total_live, pooled.total_false, pooled.n_crosscoders) == (4, 1, 2)


def test_a_null_without_latents_expects_nothing_known():
    empty = null_reference("drift", [torch.zeros(3).double()], [torch.zeros(3, dtype=torch.bool)])
    assert math.isnan(empty.rate()[0])
    assert math.isnan(empty.expected(torch.tensor([0.1]).double())[0])


def test_nothing_expected_still_has_an_upper_end():
    clean = null_reference("drift", [torch.full((300,), 0.01).double()], [torch.zeros(300, dtype=torch.bool)])
    expected, at_most = clean.expected(torch.full((300,), 0.01).double())
    assert expected == 0
    assert 2 < at_most < 5


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="at least one"):
        null_reference("drift", [], [])
    with pytest.raises(ValueError, match="frequencies"):
        reference().expected(torch.tensor([1.5]).double())
