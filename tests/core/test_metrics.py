"""Each measure against an independent computation."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from crosscoders import metrics
from crosscoders.kernels import SparseLatents
from crosscoders.metrics import ExplainedVariance
from crosscoders.sources import Source
from tests.core.toy import SOURCES, toy_rows


def explained(target: Tensor, reconstruction: Tensor, *, chunks: int = 1) -> ExplainedVariance:
    ev = ExplainedVariance(SOURCES)
    for x, y in zip(target.tensor_split(chunks), reconstruction.tensor_split(chunks)):
        ev.update(x, y)
    return ev


def test_mean_predictor_has_ev_0_target_1_and_worse_is_negative() -> None:
    x = toy_rows(200) + 30
    mean = x.double().mean(dim=0).expand(200, -1)
    for reconstruction, expected in ((mean, 0.0), (x, 1.0)):
        ev = explained(x, reconstruction, chunks=7)
        for value in (*ev.compute().values(), ev.compute_difference()):
            assert math.isclose(value, expected, abs_tol=1e-9)
    assert all(value < -0.5 for value in explained(x, 2 * mean - x).compute().values())


def test_ev_equals_brute_force_in_float64() -> None:
    x, noise = toy_rows(100) + 5, toy_rows(100, seed=2)
    y = x + 0.3 * noise
    ev = explained(x, y, chunks=3)
    a, b = x.double(), y.double()
    parts = {"base": (a[:, :6], b[:, :6]), "distilled": (a[:, 6:], b[:, 6:])}
    for name, (target, guess) in parts.items():
        error = sum(float((t - g).pow(2).sum()) for t, g in zip(target, guess))
        spread = sum(float((t - target.mean(0)).pow(2).sum()) for t in target)
        assert math.isclose(ev.compute()[name], 1 - error / spread, rel_tol=1e-9)
    difference, guess = a[:, 6:] - a[:, :6], b[:, 6:] - b[:, :6]
    expected = 1 - (difference - guess).pow(2).sum() / (difference - difference.mean(0)).pow(2).sum()
    assert math.isclose(ev.compute_difference(), float(expected), rel_tol=1e-9)


def test_streaming_equals_one_shot() -> None:
    x, y = toy_rows(101) + 1000, toy_rows(101, seed=3) + 1000
    once, streamed = explained(x, y), explained(x, y, chunks=17)
    for name, value in once.compute().items():
        assert math.isclose(streamed.compute()[name], value, rel_tol=1e-9)
    assert math.isclose(streamed.compute_difference(), once.compute_difference(), rel_tol=1e-9)


def test_undefined_ev_raises() -> None:
    with pytest.raises(ValueError, match="at least 2 rows"):
        explained(toy_rows(1), toy_rows(1)).compute()
    with pytest.raises(ValueError, match="does not vary"):
        explained(torch.ones(4, 12), torch.ones(4, 12)).compute()
    with pytest.raises(ValueError, match="NaN or infinity"):
        explained(torch.full((4, 12), math.nan), torch.ones(4, 12)).compute()
    with pytest.raises(ValueError, match="12"):
        explained(torch.ones(4, 11), torch.ones(4, 11))
    unequal = (Source(name="a", d_model=2), Source(name="b", d_model=3))
    with pytest.raises(ValueError, match="equal width"):
        ExplainedVariance(unequal).compute_difference()


def test_auroc_equals_pair_counting_with_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (60,), generator=generator).float()
    labels = torch.rand(60, generator=generator) < 0.3
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p in scores[labels] for n in scores[~labels]]
    assert math.isclose(metrics.auroc(scores, labels), sum(wins) / len(wins), rel_tol=1e-12)


def test_auroc_of_one_class_or_nan_raises() -> None:
    with pytest.raises(ValueError, match="both classes"):
        metrics.auroc(torch.rand(3), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="NaN"):
        metrics.auroc(torch.tensor([0.0, math.nan]), torch.tensor([True, False]))


def test_decoder_norms_by_brute_force() -> None:
    W_dec = toy_rows(5)
    for p in (1, 2):
        norms = metrics.decoder_norms(W_dec, SOURCES, p=p)
        for j, row in enumerate(W_dec.tolist()):
            for s, part in enumerate((row[:6], row[6:])):
                expected = sum(abs(v) ** p for v in part) ** (1 / p)
                assert math.isclose(norms[j, s].item(), expected, rel_tol=1e-5)


def test_decoder_norms_scale_with_the_decoder() -> None:
    W_dec = toy_rows(5)
    norms = metrics.decoder_norms(W_dec, SOURCES)
    assert_close(metrics.decoder_norms(3.0 * W_dec, SOURCES), 3.0 * norms)
    share = metrics.decoder_norm_share(norms)
    assert_close(share.sum(dim=1), torch.ones(5))
    assert_close(metrics.normalized_decoder_ratio(norms), share[:, 1])


def test_ratio_of_a_dead_decoder_is_nan_and_its_ends_are_0_and_1() -> None:
    norms = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [0.0, 0.0]])
    ratio = metrics.normalized_decoder_ratio(norms)
    assert ratio[:3].tolist() == [0.0, 1.0, 0.5]
    assert ratio[3].isnan()


def test_decoder_cosine_of_equal_and_opposite_rows() -> None:
    row = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    W_dec = torch.cat([row, torch.stack([3 * row[0], -row[1]])], dim=1)
    assert_close(metrics.decoder_cosine(W_dec, SOURCES), torch.tensor([1.0, -1.0]))


def test_l0_of_dense_and_sparse_agree() -> None:
    latents = toy_rows(8).relu()
    expected = sum(value > 0 for row in latents.tolist() for value in row) / 8
    assert metrics.l0(latents).item() == expected
    assert metrics.l0(SparseLatents.from_dense(latents)).item() == expected


def test_kl_and_cross_entropy_by_brute_force() -> None:
    p, q = toy_rows(4), toy_rows(4, seed=9)
    kl = metrics.kl_divergence(p, q)
    targets = torch.tensor([0, 3, 5, 11])
    ce = metrics.cross_entropy(p, targets)
    for i in range(4):
        P, Q = p[i].double().softmax(0), q[i].double().softmax(0)
        assert math.isclose(kl[i].item(), float((P * (P / Q).log()).sum()), rel_tol=1e-4)
        assert math.isclose(ce[i].item(), -float(P[targets[i]].log()), rel_tol=1e-4, abs_tol=1e-6)
    assert metrics.kl_divergence(p, p).abs().max() == 0


def test_loss_recovered_ends() -> None:
    assert metrics.loss_recovered(ce_clean=1.0, ce_spliced=1.0, ce_ablated=3.0) == 1.0
    assert metrics.loss_recovered(ce_clean=1.0, ce_spliced=3.0, ce_ablated=3.0) == 0.0
    with pytest.raises(ValueError, match="undefined"):
        metrics.loss_recovered(ce_clean=1.0, ce_spliced=1.0, ce_ablated=1.0)
