"""Known directions are found again in the same source."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from crosscoders.diffing.measures.free_direction import free_direction
from crosscoders.diffing.measures.reuse import reuse
from tests.diffing.measured import measured


@pytest.mark.parametrize("widths", [(12, 12), (8, 14)])
def test_the_nearest_known_direction_is_that_of_a_search(widths: tuple[int, ...]) -> None:
    m = measured("trained", widths)
    free = free_direction(m.moments, m.crosscoder)
    known = m.moments.is_live & (torch.arange(48) % 2 == 0)
    got = reuse(m.moments, m.crosscoder, free=free, known=known)
    assert (got.cross_cosine is None) == (widths[0] != widths[1])
    for latent in m.moments.is_live.nonzero()[:8, 0].tolist():
        others = [k for k in known.nonzero()[:, 0].tolist() if k != latent]
        for at, source in enumerate(got.pair):
            u = free.directions[at][latent]
            same = torch.cosine_similarity(u, m.W[others][:, m.columns(source)])
            assert int(got.known[latent, at]) == others[int(same.argmax())]
            assert_close(got.cosine[latent, at], same.max())
            if got.cross_cosine is not None:
                cross = torch.cosine_similarity(u, m.W[others][:, m.columns(got.pair[1 - at])])
                assert_close(got.cross_cosine[latent, at], cross.max())


def test_a_planted_reuse_is_found_in_its_source_only() -> None:
    """Latent 1 writes what latent 4 writes in the second source, and its opposite in the first."""
    m = measured("random", (8, 14))
    truth = m.W.clone()
    truth[1, :8], truth[1, 8:] = -m.W[4, :8], 0.3 * m.W[4, 8:]
    with_error = m.moments.sum_squares[:, :, None] * (truth - m.W)
    moments = dataclasses.replace(m.moments, with_error=with_error)
    free = free_direction(moments, m.crosscoder)
    got = reuse(moments, m.crosscoder, free=free, known=torch.ones(48, dtype=torch.bool))
    assert int(got.known[1, 1]) == 4
    assert float(got.cosine[1, 1]) == pytest.approx(1.0)
    assert int(got.known[1, 0]) != 4
    none = reuse(moments, m.crosscoder, free=free, known=torch.zeros(48, dtype=torch.bool))
    assert bool((none.known == -1).all())
    assert bool(none.cosine.isnan().all())
    other = dataclasses.replace(free, latents=free.latents + 1)
    with pytest.raises(ValueError, match="call free_direction with these moments"):
        reuse(moments, m.crosscoder, free=other, known=m.moments.is_live)
