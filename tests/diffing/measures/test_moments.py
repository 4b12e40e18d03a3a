"""One pass gives the sums that a brute-force computation over all rows gives."""

import pytest
import torch
from torch.testing import assert_close

from crosscoders.activation_fns import ReLU
from crosscoders.diffing.batches import MeasureBatch, block_of, cut_batches
from crosscoders.diffing.measures.moments import collect_moments, normalized_weights
from tests.diffing.measured import hidden_rows, measured, random_crosscoder

KINDS = ("random", "trained")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("widths", [(12, 12), (8, 14), (6, 9, 7)])
def test_moments_are_the_sums_by_block(kind: str, widths: tuple[int, ...]) -> None:
    m = measured(kind, widths)
    got, block = m.moments, block_of(m.sequence)
    r = m.f @ m.W
    for g in (0, 7, 19):
        f, here = m.f[block == g], block == g
        assert_close(got.with_error[g], f.T @ m.error[here], rtol=1e-9, atol=1e-9)
        assert_close(got.with_reconstruction[g], f.T @ r[here], rtol=1e-9, atol=1e-9)
        assert_close(got.sum_latents[g], f.sum(0))
        assert_close(got.sum_squares[g], f.square().sum(0))
        assert torch.equal(got.n_firings[g], (f != 0).sum(0))
        assert_close(got.rows.sums[g], m.x[here].sum(0))
        assert int(got.rows.n_rows[g]) == int(here.sum())
    assert_close(got.coactivation, m.f.T @ m.f, rtol=1e-9, atol=1e-9)


def test_products_of_rows_are_kept_by_half_and_source() -> None:
    m = measured("random", (8, 14))
    is_odd = (block_of(m.sequence) % 2).bool()
    for source, products in zip(("base", "distilled"), m.moments.rows.products, strict=True):
        x = m.x[:, m.columns(source)]
        assert_close(products[0], x[~is_odd].T @ x[~is_odd])
        assert_close(products[1], x[is_odd].T @ x[is_odd])


def test_sequences_with_a_firing_are_counted_once() -> None:
    m = measured("trained")
    for latent in (0, 5, 11):
        expected = len(m.sequence[m.f[:, latent] != 0].unique())
        assert int(m.moments.n_sequences[:, latent].sum()) == expected


def test_batching_does_not_change_the_sums() -> None:
    m = measured("trained")
    other = collect_moments(m.crosscoder, cut_batches(m.rows, m.sequence, batch_tokens=1900))
    assert_close(other.with_error, m.moments.with_error)
    assert_close(other.coactivation, m.moments.coactivation)
    assert torch.equal(other.n_sequences, m.moments.n_sequences)


def test_a_choice_of_latents_keeps_their_part_only() -> None:
    m = measured("trained")
    chosen = torch.tensor([3, 17, 40])
    part = collect_moments(m.crosscoder, m.batches(), latents=chosen)
    assert torch.equal(part.latents, chosen)
    assert_close(part.with_error, m.moments.with_error[:, chosen])
    assert_close(part.with_reconstruction, m.moments.with_reconstruction[:, chosen])
    assert_close(part.coactivation, m.moments.coactivation[chosen])
    assert_close(part.sum_squares, m.moments.sum_squares)
    decoder = torch.ones(3, 12, dtype=torch.float64)
    expected = m.moments.restored_error("base", torch.ones(48, 12, dtype=torch.float64))[:, chosen]
    assert_close(part.restored_error("base", decoder), expected)


def test_dense_latents_are_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    m = measured("trained")
    monkeypatch.setattr("crosscoders.diffing.measures.moments._DENSE_ENTRIES", 100 * 48)
    assert_close(collect_moments(m.crosscoder, m.batches()).coactivation, m.moments.coactivation)


def test_folding_changes_nothing_and_the_mode_stays() -> None:
    m = measured("trained")
    folded = m.crosscoder.fold().train()
    moments = collect_moments(folded, m.batches())
    assert folded.training
    assert_close(moments.with_error, m.moments.with_error, rtol=1e-4, atol=1e-3)
    for mine, theirs in zip(normalized_weights(folded), normalized_weights(m.crosscoder), strict=True):
        assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_bad_batches_are_refused() -> None:
    crosscoder = random_crosscoder((4, 4), activation_fn=ReLU())
    rows, sequence = hidden_rows(40, widths=(4, 4), seed=1), torch.arange(40) // 10
    parts = [MeasureBatch(rows=r, sequence=s) for r, s in zip(rows.split(25), sequence.split(25))]
    with pytest.raises(ValueError, match="sequence 2 came in an earlier batch"):
        collect_moments(crosscoder, parts)
    with pytest.raises(ValueError, match="1 sequences lie in 1 of 20 blocks"):
        collect_moments(crosscoder, [MeasureBatch(rows=rows, sequence=0 * sequence)])
    rows[3, 3] = float("nan")
    with pytest.raises(ValueError, match="1 of 40 rows hold NaN"):
        collect_moments(crosscoder, [MeasureBatch(rows=rows, sequence=sequence)])
    with pytest.raises(ValueError, match=r"0\.\.47"):
        collect_moments(crosscoder, [], latents=torch.tensor([48]))
