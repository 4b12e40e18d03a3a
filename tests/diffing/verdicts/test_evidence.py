"""The table of evidence holds what the measures say, for two sources and for a pair of three."""

import pytest
import torch
from torch.testing import assert_close

from crosscoders.diffing.measures.swap import swap_readout
from crosscoders.diffing.verdicts import Thresholds, gather_evidence, judge_all
from tests.diffing.measured import measured


def test_folding_changes_no_figure_and_no_verdict() -> None:
    m = measured("trained")
    one, two = (gather_evidence(c, m.batches) for c in (m.crosscoder, m.crosscoder.fold()))
    for name, column in one.columns.items():
        assert_close(two[name].double(), column.double(), rtol=1e-4, atol=1e-5, equal_nan=True)
    said = [[found.verdict for found in judge_all(table, Thresholds())] for table in (one, two)]
    assert said[0] == said[1]


def test_the_order_of_the_pair_turns_the_figures_around() -> None:
    m = measured("trained")
    one, two = (gather_evidence(m.crosscoder, m.batches, pair=p) for p in (None, ("distilled", "base")))
    assert_close(one["norm_share"], 1 - two["norm_share"])
    assert_close(one["swap_gained"], two["swap_lost"], equal_nan=True)
    for name in ("ratio", "kappa", "decoder_cosine", "nu_error", "reuse_cosine", "partner_correlation"):
        assert_close(one[name], two[name], equal_nan=True)
    said = [[found.verdict for found in judge_all(table, Thresholds())] for table in (one, two)]
    assert said[0] == said[1]


def test_the_table_says_which_latents_the_swap_cannot_read() -> None:
    m = measured("trained")
    table = gather_evidence(m.crosscoder, m.batches)
    found = swap_readout(m.crosscoder, m.batches())
    assert torch.equal(table["swap_readable"], found.is_readable.double())
    assert bool(table["swap_gained"][table["swap_readable"] == 0].isnan().all())
    assert 0 < int(table["swap_readable"].sum()) < 48


def test_two_of_three_sources_are_swapped_and_unequal_widths_are_not() -> None:
    m = measured("trained", (12, 7, 12))
    pair = ("base", "distilled")
    table = gather_evidence(m.crosscoder, m.batches)
    expected = swap_readout(m.crosscoder, m.batches(), slots=pair, pair=pair)
    assert_close(table["swap_gained"], expected.gained, equal_nan=True)
    assert not bool(table["swap_gained"].isnan().all())
    W = [m.W[:, m.columns(name)] for name in pair]
    assert_close(table["decoder_cosine"], torch.cosine_similarity(*W, dim=1, eps=0.0), equal_nan=True)
    unequal = gather_evidence(m.crosscoder, m.batches, pair=("base", "middle"))
    for name in ("kappa", "decoder_cosine", "off_activity", "swap_gained", "swap_readable"):
        assert bool(unequal[name].isnan().all())
    with pytest.raises(ValueError, match="nobody"):
        gather_evidence(m.crosscoder, m.batches, pair=("base", "nobody"))
