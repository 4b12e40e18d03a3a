"""Activity along a direction, measured where the latent is off."""

import pytest
import torch
from torch.testing import assert_close

from crosscoders.diffing.measures.off_activity import off_activity
from tests.diffing.measured import measured


def test_off_activity_is_the_variance_where_the_latent_is_off(generator: torch.Generator) -> None:
    m = measured("trained")
    latents = m.moments.is_live.nonzero()[:5, 0]
    directions = m.W[latents, 12:].clone()
    directions[4] = 0.0
    got = off_activity(
        m.crosscoder, m.batches(), source="base", latents=latents, directions=directions,
        generator=generator, n_random=400,
    )  # fmt: skip
    for place, latent in enumerate(latents[:4].tolist()):
        x = m.x[m.f[:, latent] == 0, :12]
        expected = (x @ directions[place] / directions[place].norm()).var(unbiased=False)
        assert_close(got.variance[place], expected)
        mean_over_sphere = x.var(dim=0, unbiased=False).mean()
        assert float(got.random_mean[place] / mean_over_sphere) == pytest.approx(1.0, abs=0.15)
    assert bool(got.variance[4].isnan())
    assert bool(got.share_below[4].isnan())


def test_used_directions_stand_out_from_random_ones(generator: torch.Generator) -> None:
    """The leading and the last axis of the rows are the most and the least active of all directions."""
    m = measured("trained")
    axes = torch.linalg.eigh(torch.cov(m.x[:, :12].T)).eigenvectors
    latents = m.moments.is_live.nonzero()[:2, 0]
    got = off_activity(
        m.crosscoder, m.batches(), source="base", latents=latents,
        directions=torch.stack([axes[:, -1], axes[:, 0]]), generator=generator,
    )  # fmt: skip
    assert float(got.share_below[0]) > 0.95
    assert float(got.share_below[1]) < 0.05
    assert float(got.excess[0]) > 1.5
    with pytest.raises(ValueError, match="width 12"):
        off_activity(
            m.crosscoder, [], source="base", latents=latents, directions=m.W[latents], generator=generator
        )


@pytest.mark.parametrize("latent", [-1, 48])
def test_latents_that_do_not_exist_are_refused(latent: int, generator: torch.Generator) -> None:
    m = measured("random")
    with pytest.raises(ValueError, match=r"0\.\.47"):
        off_activity(
            m.crosscoder,
            m.batches(),
            source="base",
            latents=torch.tensor([latent]),
            directions=torch.ones(1, 12),
            generator=generator,
        )
