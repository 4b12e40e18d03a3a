"""Difference of means, principal axes of the difference, and logit differences by token."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from crosscoders.diffing.baselines import (
    DifferenceMoments,
    difference_moments,
    difference_of_means,
    difference_pca,
    logit_differences,
)
from crosscoders.diffing.batches import cut_batches
from crosscoders.harvest import load_sources
from crosscoders.models import IdPolicy, IdRule, load_model
from crosscoders.sources import Source
from tests.data.toy_models import N_VOCAB, random_tokens, toy_gpt2, toy_model, toy_tokenizer

THREE = (
    Source(name="a", d_model=6, scale=0.3),
    Source(name="wide", d_model=4),
    Source(name="b", d_model=6, scale=2.0),
)


def correlated_rows(n: int = 400, *, offset: float = 5.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 16, generator=generator) @ torch.randn(16, 16, generator=generator) + offset


def moments_of(rows: Tensor, *, batch_tokens: int = 64, **options: object) -> DifferenceMoments:
    sequence = torch.arange(len(rows)) // 10
    return difference_moments(cut_batches(rows, sequence, batch_tokens=batch_tokens), THREE, **options)


@pytest.mark.parametrize("names", [None, ("b", "a")])
def test_moments_equal_those_of_all_rows_at_once(names: tuple[str, str] | None) -> None:
    rows = correlated_rows().double()
    change = (rows[:, 10:] - rows[:, :6]) * (1 if names is None else -1)
    found = moments_of(rows.float(), pair=names)
    assert (found.pair, found.n_rows) == (names or ("a", "b"), 400)
    assert_close(found.mean, change.mean(dim=0), rtol=1e-5, atol=1e-6)
    assert_close(found.covariance, torch.cov(change.T, correction=0), rtol=1e-5, atol=1e-5)
    assert found.mean_square == pytest.approx(float(change.square().sum(dim=1).mean()), rel=1e-6)
    columns = slice(0, 6) if names is None else slice(10, 16)
    squares = float(rows[:, columns].square().sum(dim=1).mean())
    assert found.mean_square_first == pytest.approx(squares, rel=1e-6)


def test_a_common_offset_costs_no_digits() -> None:
    rows = correlated_rows(offset=0.0).double()
    shift = torch.cat([torch.zeros(10), torch.full((6,), 1e7)]).double()
    near, far = moments_of(rows), moments_of(rows + shift)
    assert_close(far.covariance, near.covariance, rtol=1e-6, atol=1e-6)
    assert_close(moments_of(rows, batch_tokens=1).covariance, near.covariance, rtol=1e-12, atol=1e-12)


def test_shares_of_the_mean_are_those_of_brute_force() -> None:
    rows = correlated_rows().double()
    change = rows[:, 10:] - rows[:, :6] + torch.tensor([4.0, 0, 0, 0, 0, 0])
    rows[:, 10:] = rows[:, :6] + change
    found, mean = difference_of_means(moments_of(rows)), change.mean(dim=0)
    along = (change - mean) @ (mean / mean.norm())
    assert_close(found.vector, mean)
    total = (change - mean).square().sum()
    assert found.share_of_variance == pytest.approx(float(along.square().sum() / total), rel=1e-9)
    squares = change.square().sum(dim=1)
    assert found.share_of_square == pytest.approx(float(mean.square().sum() / squares.mean()), rel=1e-9)
    norm = rows[:, :6].square().sum(dim=1).mean().sqrt()
    assert found.relative_norm == pytest.approx(float(mean.norm() / norm), rel=1e-9)
    assert f"{found.share_of_square:.1%} of the mean squared difference" in found.lines()[0]


def test_a_constant_difference_is_all_mean_and_no_variance() -> None:
    rows = correlated_rows().double()
    rows[:, 10:] = rows[:, :6].round() + 3.0
    rows[:, :6] = rows[:, :6].round()
    moments = moments_of(rows)
    found = difference_of_means(moments)
    assert found.share_of_square == 1.0
    assert math.isnan(found.share_of_variance)
    assert "does not vary" in difference_pca(moments, n_components=2).lines()[0]
    with pytest.raises(ValueError, match="does not vary"):
        difference_pca(moments, n_components=2).n_for(0.5)


def test_axes_equal_a_singular_value_decomposition() -> None:
    rows = correlated_rows().double()
    change = rows[:, 10:] - rows[:, :6]
    _, singular, axes = torch.linalg.svd(change - change.mean(dim=0), full_matrices=False)
    found = difference_pca(moments_of(rows), n_components=3)
    assert_close(found.eigenvalues, singular.square() / 400)
    assert_close((found.directions * axes[:3]).sum(dim=1).abs(), torch.ones(3).double())
    share = singular.square().cumsum(0) / singular.square().sum()
    assert_close(found.explained_share, share)
    assert found.n_for(float(share[1]) - 1e-6) == 2
    assert found.n_for(float(share[1]) + 1e-6) == 3
    assert f"the first 3 explain {float(share[2]):.1%}" in found.lines()[0]


def test_planted_axes_explain_other_rows_too(generator: torch.Generator) -> None:
    plane = torch.linalg.qr(torch.randn(6, 2, generator=generator)).Q.T
    halves = []
    for _ in range(2):
        rows = torch.randn(2000, 16, generator=generator)
        rows[:, 10:] = rows[:, :6] + torch.randn(2000, 2, generator=generator) * torch.tensor([3, 2]) @ plane
        rows[:, 10:] += 0.1 * torch.randn(2000, 6, generator=generator)
        halves.append(moments_of(rows))
    found = difference_pca(halves[0], n_components=2)
    held_out = found.explained_on(halves[1])
    assert_close(held_out.float(), torch.tensor([9.01, 13.02]) / 13.06, rtol=0.05, atol=0.0)
    assert_close(found.explained_on(halves[0]), found.explained_share[:2])
    assert torch.linalg.svdvals(found.directions.float() @ plane.T).min() > 0.999


def test_what_has_no_difference_raises() -> None:
    rows = correlated_rows(20)
    for options, message in (
        ({"pair": ("a", "wide")}, "needs one width, but 'a' has 6 and 'wide' has 4"),
        ({"pair": ("a", "a")}, "two different sources"),
        ({"pair": ("a", "c")}, "'c'"),
    ):
        with pytest.raises(ValueError, match=message):
            moments_of(rows, **options)
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        moments_of(rows[:1])
    rows[3, 12] = math.nan
    with pytest.raises(ValueError, match="b less a is NaN or infinite in some of 20 rows"):
        moments_of(rows)
    moments = moments_of(correlated_rows())
    with pytest.raises(ValueError, match=r"must lie in 1..6, got 7"):
        difference_pca(moments, n_components=7)
    with pytest.raises(ValueError, match="got moments of"):
        difference_pca(moments, n_components=1).explained_on(moments_of(correlated_rows(), pair=("b", "a")))
    with pytest.raises(ValueError, match="between 0 and 1"):
        difference_pca(moments, n_components=1).n_for(1.0)


TOKENS = random_tokens(5, 8)
MASK = torch.rand(5, 8, generator=torch.Generator().manual_seed(1)) < 0.7


def test_logit_differences_equal_a_computation_at_once() -> None:
    models = {"first": toy_model(seed=1, d_model=8), "second": toy_model()}
    found = logit_differences(load_sources(models), TOKENS, mask=MASK, batch_size=2)
    with torch.no_grad():
        first, second = (m(input_ids=TOKENS).logits.double() for m in models.values())
    a, b = (each - each.mean(dim=-1, keepdim=True) for each in (first, second))
    p, q = first.softmax(dim=-1), second.softmax(dim=-1)
    assert (found.n_tokens, found.n_sequences, found.n_left_out) == (int(MASK.sum()), 5, 0)
    assert_close(found.difference, (b - a)[MASK].mean(dim=0), rtol=1e-4, atol=1e-5)
    assert_close(found.probability_first, p[MASK].mean(dim=0), rtol=1e-4, atol=1e-6)
    assert_close(found.probability_second, q[MASK].mean(dim=0), rtol=1e-4, atol=1e-6)
    assert_close(found.kl_part, (q * (q / p).log())[MASK].mean(dim=0), rtol=1e-4, atol=1e-6)
    mean = found.difference
    scatter = sum(((b - a)[i][MASK[i]] - mean).sum(dim=0).square() for i in range(5))
    assert_close(found.standard_error, (5 / 4 * scatter).sqrt() / MASK.sum(), rtol=1e-4, atol=1e-6)


def test_the_ranking_is_that_of_log_probabilities() -> None:
    models = {"first": toy_model(seed=1), "second": toy_model()}
    sources = load_sources(models)
    found = logit_differences(sources, TOKENS, mask=MASK)
    with torch.no_grad():
        a, b = (m(input_ids=TOKENS).logits.log_softmax(dim=-1)[MASK] for m in models.values())
    order = (b - a).mean(dim=0).argsort(descending=True)
    positive = int((found.difference > 0).sum())
    top = [each.token_id for each in found.top("second", n=N_VOCAB)]
    assert top == order[:positive].tolist()
    assert [each.token_id for each in found.top("first", n=3)] == order.flip(0)[:3].tolist()
    back = logit_differences(sources, TOKENS, mask=MASK, pair=("second", "first"))
    assert_close(back.difference, -found.difference)
    assert [each.token_id for each in back.top("first", n=4)] == top[:4]
    likely = found.top("second", n=N_VOCAB, min_probability=0.02)
    assert 0 < len(likely) < positive
    assert min(each.probability_second for each in likely) >= 0.02


def test_a_model_against_itself_prefers_nothing() -> None:
    found = logit_differences(load_sources({"a": toy_model(), "b": toy_model()}), TOKENS, mask=MASK)
    assert found.top("first") == found.top("second") == []
    assert (found.difference == 0).all()
    assert (found.standard_error == 0).all()
    one = logit_differences(
        load_sources({"a": toy_model(), "b": toy_model(seed=1)}), TOKENS[:1], mask=MASK[:1]
    )
    assert one.standard_error.isnan().all()


def test_a_planted_preference_is_found_and_named() -> None:
    models = {"base": toy_model(seed=3), "distilled": toy_model(seed=3)}
    tokenizer = toy_tokenizer()
    boosted = torch.nn.Linear(16, N_VOCAB)
    with torch.no_grad():
        boosted.weight = models["distilled"].lm_head.weight
        boosted.bias.zero_()[11] = 1.5
    models["distilled"].lm_head = boosted
    found = logit_differences(load_sources(models, tokenizer=tokenizer), TOKENS, mask=MASK)
    (top,) = found.top("second", n=1)
    assert top.token_id == 11
    assert top == found.token(11)
    assert top.difference == pytest.approx(1.5 * (1 - 1 / N_VOCAB), abs=1e-5)
    assert top.standard_error == pytest.approx(0.0, abs=1e-6)
    assert top.kl_part > 0
    assert any("'w11': +1.46" in line for line in found.lines(tokenizer=tokenizer, n=2))
    assert any("    11: +1.46" in line for line in found.lines(n=2))


def test_ids_of_another_meaning_have_no_difference() -> None:
    models = {
        "base": load_model(toy_model(seed=1), name="base", tokenizer=toy_tokenizer(swapped=(20, 21))),
        "distilled": load_model(toy_model(), name="distilled", tokenizer=toy_tokenizer()),
    }
    policy = IdPolicy(rules=(IdRule(action="mask", token_ids=(20, 21)),))
    found = logit_differences(load_sources(models, id_policy=policy), TOKENS, mask=MASK)
    assert found.difference.isnan().nonzero().flatten().tolist() == [20, 21]
    assert not {20, 21} & {each.token_id for each in found.top("second", n=N_VOCAB)}


def test_a_larger_vocabulary_is_cut_to_the_common_ids() -> None:
    padded = toy_model(seed=1)
    padded.resize_token_embeddings(N_VOCAB + 8, mean_resizing=False)
    found = logit_differences(load_sources({"a": toy_gpt2(), "b": padded}), TOKENS, mask=MASK)
    assert (len(found.difference), found.n_left_out) == (N_VOCAB, 8)
    with torch.no_grad():
        q = padded(input_ids=TOKENS).logits.softmax(dim=-1)[MASK].mean(dim=0)
    assert_close(found.probability_second.float(), q[:N_VOCAB], rtol=1e-4, atol=1e-6)
    assert float(found.difference.mean()) == pytest.approx(0.0, abs=1e-9)


def test_what_cannot_be_read_raises(tmp_path: object) -> None:
    sources = load_sources({"a": toy_model(), "b": toy_model(seed=1)})
    with pytest.raises(ValueError, match="positions in mask, got 4 and 0"):
        logit_differences(sources, TOKENS, mask=torch.zeros_like(MASK))
    with pytest.raises(ValueError, match="batch_size >= 1"):
        logit_differences(sources, TOKENS, mask=MASK, batch_size=0)
    found = logit_differences(sources, TOKENS, mask=MASK)
    with pytest.raises(ValueError, match=r"outside 0\.\.39"):
        found.token(40)
    with pytest.raises(ValueError, match="n >= 1"):
        found.top("first", n=0)
    toy_model().save_pretrained(tmp_path)
    short = load_sources({"a": toy_model(), "b": str(tmp_path)}, truncate=True)
    with pytest.raises(ValueError, match="the logit differences needs more"):
        logit_differences(short, TOKENS, mask=MASK)
