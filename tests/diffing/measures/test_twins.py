"""Twins are found by brute force, never oneself, never a dead latent."""

import dataclasses

import numpy as np
import torch
from torch.testing import assert_close

from crosscoders.diffing.measures.moments import collect_moments
from crosscoders.diffing.measures.twins import activation_correlation, twins
from tests.diffing.measured import measured


def test_correlations_are_those_of_all_rows() -> None:
    m = measured("trained")
    live = m.moments.is_live
    expected = torch.from_numpy(np.corrcoef(m.f[:, live].numpy().T))
    assert_close(activation_correlation(m.moments)[live][:, live], expected, rtol=1e-8, atol=1e-8)
    assert bool(activation_correlation(m.moments)[:, ~live].isnan().all())


def test_twins_are_the_best_of_all_other_live_latents() -> None:
    m = measured("trained", (8, 14))
    got, live = twins(m.moments, m.crosscoder), m.moments.is_live.nonzero()[:, 0].tolist()
    assert 10 < len(live) < 48
    for latent in live[:8]:
        others = [k for k in live if k != latent]
        scores = [float(np.corrcoef(m.f[:, latent], m.f[:, k])[0, 1]) for k in others]
        assert int(got.correlated[latent]) == others[int(np.argmax(scores))]
        assert abs(float(got.correlation[latent]) - max(scores)) < 1e-9
        for at, source in enumerate(("base", "distilled")):
            W = m.W[:, m.columns(source)]
            cosines = torch.cosine_similarity(W[latent], W[others])
            assert int(got.decoder_twin[latent, at]) == others[int(cosines.abs().argmax())]
            assert_close(got.decoder_cosine[latent, at], cosines[cosines.abs().argmax()])


def test_candidates_and_chosen_latents_limit_the_search() -> None:
    m = measured("trained")
    live = m.moments.is_live.nonzero()[:, 0]
    candidates = torch.zeros(48, dtype=torch.bool)
    candidates[live[:2]] = True
    got = twins(m.moments, m.crosscoder, candidates=candidates)
    assert int(got.correlated[live[0]]) == int(live[1])
    assert int(got.decoder_twin[live[1], 0]) == int(live[0])
    chosen = live[3:6]
    part = twins(collect_moments(m.crosscoder, m.batches(), latents=chosen), m.crosscoder)
    whole = twins(m.moments, m.crosscoder)
    assert torch.equal(part.correlated, whole.correlated[chosen])
    assert torch.equal(part.decoder_twin, whole.decoder_twin[chosen])


def test_no_candidate_is_said_not_made_up() -> None:
    m = measured("trained")
    none = twins(m.moments, m.crosscoder, candidates=torch.zeros(48, dtype=torch.bool))
    assert bool((none.correlated == -1).all())
    assert bool(none.correlation.isnan().all())
    silent = dataclasses.replace(m.moments, n_firings=torch.zeros_like(m.moments.n_firings))
    assert bool((twins(silent, m.crosscoder).decoder_twin == -1).all())
