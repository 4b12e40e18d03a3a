"""Matches across seeds agree with dense correlations; relabeled latents are found, unrelated ones are not."""

import copy
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import crosscoders.diffing.measures.stability as module
from crosscoders.activation_fns import ActivationFn, BatchTopK, ReLU, TopK
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.diffing.batches import MeasureBatch
from crosscoders.diffing.measures.jackknife import student_factor
from crosscoders.diffing.measures.stability import Stability, stability
from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.sources import Source
from tests.core.toy import toy_crosscoder, toy_rows

POS = 16


def batches_of(rows: Tensor, *, size: int = 96) -> list[MeasureBatch]:
    sequence = torch.arange(len(rows)) // POS
    return [MeasureBatch(rows=r, sequence=s) for r, s in zip(rows.split(size), sequence.split(size))]


def three(activation_fn: ActivationFn) -> list[Crosscoder]:
    sizes = (24, 40, 32)
    found = [toy_crosscoder(activation_fn, n_latents=n, seed=i).eval() for i, n in enumerate(sizes)]
    if isinstance(activation_fn, BatchTopK):
        for crosscoder in found:
            crosscoder.activation.calibrate(torch.tensor([2.0]))
    return found


def dense(crosscoder: Crosscoder, rows: Tensor) -> Tensor:
    latents = crosscoder.encode(rows)
    return (latents.to_dense() if isinstance(latents, SparseLatents) else latents).detach().double()


def relabeled(crosscoder: Crosscoder, order: Tensor) -> Crosscoder:
    """The same crosscoder with its latents in another order."""
    other = copy.deepcopy(crosscoder)
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec"):
            getattr(other, name).copy_(getattr(crosscoder, name)[order])
    return other


def numpy_correlation(f: Tensor, g: Tensor) -> Tensor:
    with np.errstate(invalid="ignore", divide="ignore"):
        both = np.corrcoef(f.T.numpy(), g.T.numpy())
    return torch.from_numpy(both[: f.shape[1], f.shape[1] :])


def assert_matches_are_best(found: Stability, crosscoders: list[Crosscoder], rows: Tensor) -> None:
    f = dense(crosscoders[0], rows)
    for k, other in enumerate(crosscoders[1:]):
        correlation = numpy_correlation(f, dense(other, rows))
        best = torch.where(correlation.isnan(), -torch.inf, correlation).amax(dim=1)
        fires = (f != 0).any(dim=0)
        assert torch.equal(found.match[:, k] >= 0, fires)
        at_match = correlation.gather(1, found.match[:, k, None].abs())[fires, 0]
        assert_close(at_match, best[fires], rtol=1e-9, atol=1e-9)  # two latents may be equally good
        expected = torch.where(fires, best, torch.nan)
        assert_close(found.by_seed[:, k], expected, rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("activation_fn", [TopK(k=3), BatchTopK(k=3), ReLU()])
def test_matches_and_correlations_equal_those_of_dense_latents(activation_fn: ActivationFn) -> None:
    crosscoders, rows = three(activation_fn), toy_rows(600)
    found = stability(crosscoders, batches_of(rows), n_blocks=5)
    assert_matches_are_best(found, crosscoders, rows)
    assert found.n_tokens == 600


def test_products_summed_in_small_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    crosscoders, rows = three(TopK(k=3)), toy_rows(600)
    whole = stability(crosscoders, batches_of(rows))
    monkeypatch.setattr(module, "_PAIRS_AT_ONCE", 7)
    monkeypatch.setattr(module, "_PRODUCTS_AT_ONCE", 100)
    pieces = stability(crosscoders, batches_of(rows))
    assert torch.equal(pieces.match, whole.match)
    assert_close(pieces.by_seed, whole.by_seed, equal_nan=True)


def test_the_interval_is_that_of_deleting_blocks_one_by_one() -> None:
    crosscoders, rows = three(TopK(k=3)), toy_rows(640)
    found = stability(crosscoders, batches_of(rows), n_blocks=5)
    block = torch.arange(640) // POS % 5
    f, others = dense(crosscoders[0], rows), [dense(other, rows) for other in crosscoders[1:]]
    values = torch.zeros(5, 24, dtype=torch.float64)
    for b in range(5):
        for k, g in enumerate(others):
            kept = numpy_correlation(f[block != b], g[block != b])
            values[b] += kept.gather(1, found.match[:, k : k + 1].abs())[:, 0] / 2
    half = student_factor(5) * (values.var(dim=0, correction=0) * 4).sqrt()
    mean = torch.where(found.match[:, 0] < 0, torch.nan, found.by_seed.mean(dim=1))
    assert_close(found.correlation.value, mean, equal_nan=True)
    assert_close(found.correlation.high - mean, torch.where(mean.isnan(), mean, half), equal_nan=True)
    assert NormalDist().inv_cdf(0.975) < student_factor(5) < 3
    assert bool((half[~mean.isnan()] > 0).any())


def test_relabeled_latents_are_found_where_they_went() -> None:
    first, rows = three(TopK(k=3))[0], toy_rows(600)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(4))
    found = stability([first, relabeled(first, order), first], batches_of(rows))
    fires = (dense(first, rows) != 0).any(dim=0)
    assert torch.equal(found.match[fires, 0], order.argsort()[fires])
    assert_close(found.by_seed[fires], torch.ones(int(fires.sum()), 2, dtype=torch.float64))
    assert_close(found.cosine_by_source[fires], torch.ones(int(fires.sum()), 2, 2, dtype=torch.float64))
    assert found.n_found.tolist() == (2 * fires.long()).tolist()
    assert_close(found.correlation.low, found.correlation.high, equal_nan=True)


def test_same_tokens_with_another_direction_is_not_the_same_latent() -> None:
    first, rows = three(ReLU())[0], toy_rows(600)
    turned = copy.deepcopy(first)
    with torch.no_grad():
        turned.W_dec[0] = -turned.W_dec[0]
        turned.W_dec[1, 6:] = 0.0
    found = stability([first, turned], batches_of(rows))
    assert_close(found.by_seed[0], torch.ones(1, dtype=torch.float64))
    assert_close(found.cosine[0], -torch.ones(1, dtype=torch.float64))
    assert int(found.n_found[0]) == 0
    a, b = first.W_dec[1].double(), turned.W_dec[1].double()
    assert_close(found.cosine[1, 0], (a @ b / a.norm() / b.norm()).detach())
    assert bool(found.cosine_by_source[1, 0, 1].isnan())


def test_a_latent_that_never_fires_has_no_match() -> None:
    crosscoders, rows = three(TopK(k=3)), toy_rows(600)
    with torch.no_grad():
        crosscoders[0].b_enc[5] = -1e6
    found = stability(crosscoders, batches_of(rows))
    assert found.match[5].tolist() == [-1, -1]
    assert bool(found.correlation.value[5].isnan() & found.correlation.low[5].isnan())
    assert int(found.n_found[5]) == 0


def test_a_crosscoder_that_never_fires_leaves_the_mean_undefined() -> None:
    crosscoders = three(ReLU())
    with torch.no_grad():
        crosscoders[2].b_enc.fill_(-1e6)
    found = stability(crosscoders, batches_of(toy_rows(320)))
    assert found.match[:, 1].unique().tolist() == [-1]
    assert bool(found.correlation.value.isnan().all())


def test_units_do_not_matter_and_folding_changes_nothing() -> None:
    crosscoders, rows = three(TopK(k=3)), toy_rows(600)
    stretched = copy.deepcopy(crosscoders[1])
    with torch.no_grad():
        stretched.W_dec.mul_(5.0)
    plain = stability(crosscoders[:2], batches_of(rows))
    for first, other in ((crosscoders[0].fold(), crosscoders[1].fold()), (crosscoders[0], stretched)):
        found = stability([first, other], batches_of(rows))
        assert torch.equal(found.match, plain.match)
        assert_close(found.cosine, plain.cosine, equal_nan=True, atol=1e-6, rtol=1e-5)


def test_sources_of_unequal_widths_and_training_mode() -> None:
    sources = tuple(Source(name=f"s{i}", d_model=d) for i, d in enumerate((4, 5, 3)))
    config = CrosscoderConfig(sources=sources, n_latents=20, activation_fn=TopK(k=3))
    pair = [Crosscoder(config, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    pair[1].eval()
    rows = toy_rows(320)
    found = stability(pair, batches_of(rows))
    assert_matches_are_best(found, pair, rows)
    assert found.cosine_by_source.shape == (20, 1, 3)
    assert [crosscoder.training for crosscoder in pair] == [True, False]


def test_what_cannot_be_compared_is_refused() -> None:
    crosscoders, batches = three(TopK(k=3)), batches_of(toy_rows(320))
    with pytest.raises(ValueError, match="needs two crosscoders or more, got 1"):
        stability(crosscoders[:1], batches)
    with pytest.raises(ValueError, match="at least 2 blocks of sequences, got 1"):
        stability(crosscoders, batches_of(toy_rows(POS)))
    with pytest.raises(ValueError, match="the batches gave nothing"):
        stability(crosscoders, [])
    sources = (Source(name="base", d_model=6), Source(name="other", d_model=6))
    config = CrosscoderConfig(sources=sources, n_latents=8, activation_fn=TopK(k=3))
    with pytest.raises(ValueError, match=r"crosscoder 2 reads .*'other', 6.* but the first reads"):
        stability([crosscoders[0], Crosscoder(config)], batches)
