"""Held-out figures: the baseline table, and scores against direct computation."""

import pytest
import torch

from crosscoders.activation_fns import ReLU
from crosscoders.evaluation import ReconstructionScorer, TokenMeans, evaluate
from tests.core.toy import SOURCES, toy_crosscoder, toy_rows


def test_token_means_are_the_means_per_token_and_fall_back_to_the_overall_mean(generator):
    rows = toy_rows(100)
    ids = torch.randint(0, 5, (100,), generator=generator)
    table = TokenMeans(SOURCES)
    for part, some in zip(rows.split(30), ids.split(30), strict=True):
        table.update(some, part)
    predicted = table.predict(torch.tensor([0, 3, 99]))
    torch.testing.assert_close(predicted[0], rows[ids == 0].mean(dim=0))
    torch.testing.assert_close(predicted[1], rows[ids == 3].mean(dim=0))
    torch.testing.assert_close(predicted[2], rows.mean(dim=0))


def test_empty_table_raises():
    with pytest.raises(ValueError, match="table is empty"):
        TokenMeans(SOURCES).predict(torch.tensor([1]))


def test_scores_agree_with_direct_computation_and_do_not_depend_on_batches():
    crosscoder = toy_crosscoder(ReLU()).eval()
    rows = toy_rows(200)
    with torch.no_grad():
        error = (rows - crosscoder.reconstruct(rows)).double()
    centred = (rows - rows.double().mean(dim=0)).double()
    expected = 1 - error[:, :6].square().sum() / centred[:, :6].square().sum()
    expected_difference = (
        1 - (error[:, 6:] - error[:, :6]).square().sum() / (centred[:, 6:] - centred[:, :6]).square().sum()
    )
    for chunk in (200, 33):
        figures = evaluate(crosscoder, rows.split(chunk))
        assert figures["ev/base"] == pytest.approx(float(expected))
        assert figures["ev/difference"] == pytest.approx(float(expected_difference))


def test_token_mean_baseline_explains_nothing_when_all_tokens_are_one():
    crosscoder = toy_crosscoder(ReLU()).eval()
    rows, ids = toy_rows(200), torch.zeros(200, dtype=torch.int64)
    means = TokenMeans(SOURCES)
    means.update(ids, rows)
    scorer = ReconstructionScorer(crosscoder, means)
    scorer.update(rows, ids)
    scores = scorer.scores()
    assert scores.token_means is not None
    assert scores.token_means["base"] == pytest.approx(0.0, abs=1e-6)
    assert scores.token_means_difference == pytest.approx(0.0, abs=1e-6)


def test_batches_may_differ_in_size():
    crosscoder, rows = toy_crosscoder(ReLU(), n_latents=4).eval(), toy_rows(9)
    for _ in range(30):  # the checker looks at one batch drawn by chance
        assert evaluate(crosscoder, rows.split(5)) == evaluate(crosscoder, rows.split(5))


def test_evaluation_leaves_mode_and_weights_alone():
    crosscoder = toy_crosscoder(ReLU()).train()
    before = {name: value.clone() for name, value in crosscoder.state_dict().items()}
    evaluate(crosscoder, [toy_rows(50)])
    assert crosscoder.training
    assert all(torch.equal(before[name], value) for name, value in crosscoder.state_dict().items())
