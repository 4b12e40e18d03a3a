"""The closed-form readout is the ridge fit on all rows, scored on rows it did not see."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from crosscoders.activation_fns import ReLU
from crosscoders.diffing.batches import block_of, cut_batches
from crosscoders.diffing.measures.decodability import decodability
from crosscoders.diffing.measures.moments import collect_moments
from tests.diffing.measured import Measured, hidden_rows, measured, random_crosscoder


def ridge_correlation(m: Measured, latent: int, source: str, *, scored: int) -> float:
    """Augmented least squares on one half of the rows, Pearson correlation on the other."""
    half = block_of(m.sequence) % 2
    x, f = m.x[:, m.columns(source)], m.f[:, latent]
    train, test = half != scored, half == scored
    centered = x[train] - x[train].mean(0)
    penalty = (1e-3 * centered.square().mean() * len(centered)).sqrt()
    design = torch.cat([centered, penalty * torch.eye(x.shape[1], dtype=x.dtype)])
    goal = torch.cat([f[train] - f[train].mean(), torch.zeros(x.shape[1], dtype=x.dtype)])
    readout: Tensor = torch.linalg.lstsq(design, goal[:, None]).solution[:, 0]
    return float(np.corrcoef((x[test] @ readout).numpy(), f[test].numpy())[0, 1])


@pytest.mark.parametrize("widths", [(12, 12), (8, 14)])
def test_readouts_are_ridge_fits_scored_on_the_other_half(widths: tuple[int, ...]) -> None:
    m = measured("trained", widths)
    got = decodability(m.moments, m.crosscoder)
    for latent in ((m.f != 0).sum(0) >= 100).nonzero()[:12, 0].tolist():
        for at, source in enumerate(got.pair):
            for half in (0, 1):
                expected = ridge_correlation(m, latent, source, scored=half)
                assert float(got.by_half[latent, at, half]) == pytest.approx(expected, rel=1e-6)
        assert_close(got.correlation[latent], got.by_half[latent].mean(dim=1))


def test_what_one_source_lacks_cannot_be_read_from_it(generator: torch.Generator) -> None:
    """Latents that read the second source alone, and a first source that knows nothing of it."""
    crosscoder = random_crosscoder((8, 14), activation_fn=ReLU())
    with torch.no_grad():
        crosscoder.W_enc[:, :8] = 0.0
    rows = hidden_rows(6000, widths=(8, 14), seed=4)
    rows[:, :8] = torch.randn(6000, 8, generator=generator)
    moments = collect_moments(crosscoder, cut_batches(rows, torch.arange(6000) // 20))
    live = (moments.n_firings.sum(dim=0) >= 300).nonzero()[:, 0]
    got = decodability(moments, crosscoder)
    assert len(live) > 10
    assert bool((got.correlation[live, 0].abs() < 0.08).all())
    assert bool((got.correlation[live, 1] > 0.4).all())
    assert bool((got.weaker_ratio[live] < 0.2).all())


def test_silent_halves_and_bad_arguments() -> None:
    m = measured("random")
    moments = dataclasses.replace(
        m.moments,
        **{
            name: getattr(m.moments, name).clone()
            for name in ("sum_latents", "sum_squares", "with_error", "with_reconstruction")
        },
    )
    for tensor in (moments.sum_latents, moments.sum_squares):
        tensor[::2, 0] = 0.0
    got = decodability(moments, m.crosscoder)
    assert bool(got.by_half[0].isnan().all())
    assert bool(got.weaker_ratio[0].isnan())
    with pytest.raises(ValueError, match="ridge must be above zero"):
        decodability(m.moments, m.crosscoder, ridge=0.0)
    rows = dataclasses.replace(m.moments.rows, n_rows=m.moments.rows.n_rows * (torch.arange(20) % 2))
    with pytest.raises(ValueError, match="number them in turn"):
        decodability(dataclasses.replace(m.moments, rows=rows), m.crosscoder)
