"""Matching planted features to latents, and what the comparison with verdicts counts."""

import math

import pytest
import torch

from crosscoders.diffing.planted import (
    RIGHT_VERDICT,
    UNDECIDED,
    FeatureMatch,
    PlantedFeature,
    match_features,
    nearest_rate,
    pool_scores,
    score,
)
from crosscoders.diffing.verdicts.judge import VERDICTS
from crosscoders.kernels.sparse_latents import SparseLatents

RATES = (0.02, 0.001)


def correlated_codes(n_tokens: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def activations(n: int) -> torch.Tensor:
        on = torch.rand(n_tokens, n, generator=generator) < 0.1
        return on * (0.5 + torch.rand(n_tokens, n, generator=generator))

    truth, other = activations(5), activations(3)
    latents = torch.cat([truth[:, [3, 1, 0]] + 0.3 * other, other, torch.zeros(n_tokens, 1)], dim=1)
    return truth, latents


def brute_force(truth: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    return torch.corrcoef(torch.cat([truth, latents], dim=1).double().T)[: truth.shape[1], truth.shape[1] :]


@pytest.mark.parametrize("is_sparse", [False, True])
def test_matches_agree_with_correlations_over_all_tokens_at_once(is_sparse: bool) -> None:
    truth, latents = correlated_codes()
    parts = zip(truth.split(1111), latents.split(1111))
    found = match_features((t, SparseLatents.from_dense(z) if is_sparse else z) for t, z in parts)
    expected = brute_force(truth, latents)[:, :-1]
    torch.testing.assert_close(found.correlation, expected.amax(1))
    torch.testing.assert_close(found.feature_correlation[:-1], expected.amax(0))
    assert torch.equal(found.latent, expected.argmax(1))
    assert torch.equal(found.feature[:-1], expected.argmax(0))
    assert torch.equal(found.firings, (truth > 0).sum(0))
    torch.testing.assert_close(found.frequency, (latents > 0).double().mean(0))


def test_latents_that_follow_a_feature_recover_it_and_silence_matches_nothing() -> None:
    truth, latents = correlated_codes()
    truth[:, 4] = 0.0
    found = match_features([(truth, latents)])
    assert found.is_recovered.tolist() == [True, True, False, True, False]
    assert found.latent[[0, 1, 3]].tolist() == [2, 1, 0]
    assert found.latent[4] == -1
    assert math.isnan(found.correlation[4])
    assert found.feature[-1] == -1
    assert math.isnan(found.feature_correlation[-1])
    assert found.has_feature.tolist() == [True, True, True, False, False, False, False]


def test_a_latent_recovers_one_feature_only() -> None:
    truth, _ = correlated_codes()
    truth[:, 1] = truth[:, 0] * (torch.arange(len(truth)) % 4 != 0)
    found = match_features([(truth[:, :2], truth[:, :1])])
    assert float(found.correlation.min()) > 0.8
    assert found.is_recovered.tolist() == [True, False]


def test_a_negative_correlation_is_still_nearer_than_none() -> None:
    truth = torch.tensor([[1.0], [0.0], [0.0], [1.0]])
    found = match_features([(truth, torch.cat([torch.zeros(4, 1), 1 - truth], dim=1))])
    assert found.latent.tolist() == [1]
    assert found.correlation.tolist() == pytest.approx([-1.0])
    assert found.is_recovered.tolist() == [False]


def test_matching_refuses_other_tokens_and_no_tokens() -> None:
    with pytest.raises(ValueError, match="same 4 tokens"):
        match_features([(torch.zeros(4, 2), torch.zeros(5, 2))])
    with pytest.raises(ValueError, match="no token"):
        match_features([])


def perfect_match(n: int, n_latents: int, **changes) -> FeatureMatch:
    """Latent `i` follows feature `i`; latents beyond follow nothing."""
    follows = torch.arange(n_latents).clamp_max(n - 1)
    given = {
        "latent": torch.arange(n),
        "correlation": torch.full((n,), 0.95, dtype=torch.float64),
        "feature": follows,
        "feature_correlation": torch.where(torch.arange(n_latents) < n, 0.95, 0.1).double(),
        "frequency": torch.full((n_latents,), 0.02, dtype=torch.float64),
        "firings": torch.full((n,), 100),
        "n_tokens": 1000,
    }
    return FeatureMatch(**{**given, **changes})


TRUTH = [
    PlantedFeature(kind="shared", rate=0.015),
    PlantedFeature(kind="exclusive", rate=0.02, owner=0),
    PlantedFeature(kind="exclusive", rate=0.02, owner=1),
    PlantedFeature(kind="reused", rate=0.02, owner=0, known_as=0),
    PlantedFeature(kind="rotated", rate=0.001),
    PlantedFeature(kind="rescaled", rate=0.001, owner=1),
]
RIGHT = [RIGHT_VERDICT[feature.kind] for feature in TRUTH]


def test_right_verdicts_score_full_marks() -> None:
    found = score(TRUTH, match=perfect_match(6, 8), verdicts=[*RIGHT, "shared", "undecided"], rates=RATES)
    assert sum(row.n_right for row in found.kinds) == sum(row.n_features for row in found.kinds) == 6
    assert sum(row.n_misjudged for row in found.kinds) == 0
    assert (found.at(0.02).f1, found.at(0.02).precision.mean, found.at(0.02).recall.mean) == (1.0, 1.0, 1.0)
    assert math.isnan(found.at(0.001).precision.mean)
    assert math.isnan(found.at(0.001).f1)


def test_each_wrong_call_is_counted_where_it_belongs() -> None:
    verdicts = ["shared", "model-specific", "undecided", "model-specific", "model-specific", "shared"]
    match = perfect_match(6, 8, frequency=torch.tensor([0.02] * 6 + [0.0012, 0.0], dtype=torch.float64))
    found = score(TRUTH, match=match, verdicts=[*verdicts, "model-specific", "shared"], rates=RATES)
    frequent, rare = found.at(0.02), found.at(0.001)
    assert (frequent.n_true, frequent.n_false, frequent.n_unmatched, frequent.n_missed) == (1, 1, 0, 1)
    assert (rare.n_true, rare.n_false, rare.n_unmatched, rare.n_missed) == (0, 2, 1, 0)
    assert (frequent.precision.mean, frequent.recall.mean, frequent.f1) == (0.5, 0.5, 0.5)
    exclusive = found.of("exclusive", 0.02)
    assert (exclusive.n_right, exclusive.n_undecided, exclusive.n_misjudged) == (1, 1, 0)
    assert (found.of("rotated", 0.001).n_called, found.of("rotated", 0.001).n_misjudged) == (1, 1)
    assert (found.of("rescaled", 0.001).n_called, found.of("rescaled", 0.001).n_misjudged) == (0, 1)


def test_in_real_activations_calls_on_unplanted_latents_are_not_false() -> None:
    verdicts = [*RIGHT, "model-specific", "model-specific"]
    found = score(TRUTH, match=perfect_match(6, 8), verdicts=verdicts, rates=RATES, unmatched_are_false=False)
    assert (found.at(0.02).n_false, found.at(0.02).n_unmatched) == (0, 0)


def test_features_not_recovered_are_held_apart_from_misjudged_ones() -> None:
    weak = torch.tensor([0.95, 0.95, 0.5, 0.95, 0.95, 0.95], dtype=torch.float64)
    match = perfect_match(6, 6, correlation=weak, feature_correlation=weak)
    found = score(TRUTH, match=match, verdicts=RIGHT, rates=RATES)
    row = found.at(0.02)
    assert (row.n_true, row.n_missed, row.n_not_recovered, row.n_unmatched) == (1, 0, 1, 1)
    assert (row.recall.mean, row.power.mean) == (1.0, 0.5)
    assert found.of("exclusive", 0.02).n_not_recovered == 1


def test_a_call_for_the_wrong_source_is_false_where_owners_are_told() -> None:
    owners = [None, 0, 0, None, None, None]
    found = score(TRUTH, match=perfect_match(6, 6), verdicts=RIGHT, rates=RATES, owners=owners)
    row = found.at(0.02)
    assert (row.n_true, row.n_false, row.n_missed) == (1, 1, 1)
    assert found.of("exclusive", 0.02).n_called == 2


def test_a_second_latent_of_a_rightly_called_feature_counts_neither_way() -> None:
    match = perfect_match(
        6, 7, feature=torch.tensor([0, 1, 2, 3, 4, 5, 1]),
        feature_correlation=torch.full((7,), 0.8, dtype=torch.float64),
    )  # fmt: skip
    row = score(TRUTH, match=match, verdicts=[*RIGHT, "model-specific"], rates=RATES).at(0.02)
    assert (row.n_true, row.n_false) == (2, 0)


def test_pooled_scores_add_up_and_show_their_intervals() -> None:
    one = score(TRUTH, match=perfect_match(6, 6), verdicts=RIGHT, rates=RATES)
    both = pool_scores([one, one])
    assert both.at(0.02).n_true == 4
    assert sum(row.n_features for row in both.kinds) == 12
    assert both.at(0.02).precision.low == pytest.approx(0.5101, abs=1e-4)  # Wilson, 4 of 4
    assert any("precision 1.000 [0.510, 1.000]" in line for line in both.lines())
    other = score(TRUTH, match=perfect_match(6, 6), verdicts=RIGHT, rates=(0.02,))
    with pytest.raises(ValueError, match="same base rates"):
        pool_scores([one, other])


def test_rates_are_near_in_logarithms() -> None:
    assert nearest_rate(0.008, (0.08, 0.001)) == 0.001  # a factor of 8 below, of 10 above
    assert nearest_rate(0.045, (0.08, 0.02, 0.001)) == 0.08  # though 0.02 differs by less
    assert nearest_rate(0.0, (0.08, 0.001)) == 0.001


def test_verdicts_scored_are_those_that_verification_gives() -> None:
    assert {*RIGHT_VERDICT.values(), *UNDECIDED} <= set(VERDICTS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verdicts": RIGHT[:-1]}, "one verdict"),
        ({"owners": [None]}, "one owner"),
        ({"features": TRUTH[:-1]}, "6 features were matched and 5 given"),
        ({"rates": ()}, "base rates above 0"),
    ],
)
def test_scores_of_mismatched_parts_are_refused(changes: dict, message: str) -> None:
    given = {"features": TRUTH, "match": perfect_match(6, 6), "verdicts": RIGHT, "rates": RATES, **changes}
    with pytest.raises(ValueError, match=message):
        score(given.pop("features"), **given)


def test_asking_for_an_unknown_rate_names_those_that_exist() -> None:
    found = score(TRUTH, match=perfect_match(6, 6), verdicts=RIGHT, rates=RATES)
    with pytest.raises(ValueError, match=r"0\.02"):
        found.at(0.5)
    with pytest.raises(ValueError, match=r"0\.02"):
        found.of("shared", 0.5)
