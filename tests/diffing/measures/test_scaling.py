"""Latent scaling equals brute-force least squares, for every latent with enough firings."""

import copy
import dataclasses

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from crosscoders.diffing.measures.scaling import TARGETS, Target, latent_scaling
from tests.diffing.measured import Measured, measured

KINDS = ("random", "trained")


def targets(m: Measured, latent: int, source: str) -> dict[str, Tensor]:
    """The four targets on every row, in one source."""
    at = m.columns(source)
    reconstruction = m.f @ m.W[:, at]
    return {
        "error": m.error[:, at] + m.f[:, latent, None] * m.W[latent, at],
        "reconstruction": reconstruction + m.b[at],
        "reconstruction_without_bias": reconstruction,
        "activation": m.x[:, at],
    }


def least_squares(f: Tensor, direction: Tensor, y: Tensor) -> float:
    """argmin_b sum |y - b f d|^2 over all rows and columns."""
    design = (f[:, None] * direction).flatten()
    return float(design @ y.flatten() / (design @ design))


@pytest.mark.parametrize("kind", KINDS)
def test_scaling_is_brute_force_least_squares(kind: str) -> None:
    m = measured(kind)
    got = latent_scaling(m.moments, m.crosscoder)
    is_enough = (m.f != 0).sum(0) >= 100
    assert int(is_enough.sum()) >= 30
    for latent in is_enough.nonzero()[:, 0].tolist():
        rows = [m.W[latent, m.columns(source)] for source in got.pair]
        reference = int(rows[1].norm() > rows[0].norm())
        assert int(got.reference[latent]) == reference
        for at, source in enumerate(got.pair):
            for target, y in targets(m, latent, source).items():
                expected = least_squares(m.f[:, latent], rows[reference], y)
                assert float(got.beta[target][latent, at]) == pytest.approx(expected, rel=1e-5, abs=1e-12)
    fits = is_enough & (got.beta["error"].gather(1, got.reference[:, None])[:, 0] > 0)
    assert torch.equal(got.refused(), ~fits)
    assert got.n_refused() == int((~fits).sum()) > 0


def test_own_directions_serve_unequal_widths() -> None:
    m = measured("trained", (8, 14))
    got = latent_scaling(m.moments, m.crosscoder, direction="own")
    for latent in (~got.refused()).nonzero()[:10, 0].tolist():
        rows = [m.W[latent, m.columns(source)] for source in got.pair]
        other, reference = 1 - int(got.reference[latent]), int(got.reference[latent])
        y = targets(m, latent, got.pair[other])["error"]
        expected = least_squares(m.f[:, latent], rows[other] / rows[other].norm(), y)
        expected /= rows[reference].norm() * (len(rows[other]) / len(rows[reference])) ** 0.5
        assert float(got.beta["error"][latent, other]) == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(ValueError, match='direction="own"'):
        latent_scaling(m.moments, m.crosscoder)


def test_own_and_reference_agree_on_the_reference() -> None:
    m = measured("trained")
    own = latent_scaling(m.moments, m.crosscoder, direction="own")
    published = latent_scaling(m.moments, m.crosscoder)
    for target in TARGETS:
        at = published.reference[:, None]
        assert_close(own.beta[target].gather(1, at), published.beta[target].gather(1, at), equal_nan=True)


def test_rare_latents_and_empty_references_are_refused_and_counted() -> None:
    m = measured("trained")
    firings = m.moments.n_firings.clone()
    firings[:, 0] = 0
    firings[0, 0] = 99
    with_error = m.moments.with_error.clone()
    with_error[:, 1] -= 3 * m.moments.sum_squares[:, 1, None] * m.W[1]
    before = latent_scaling(m.moments, m.crosscoder)
    moments = dataclasses.replace(m.moments, n_firings=firings, with_error=with_error)
    got = latent_scaling(moments, m.crosscoder)
    assert not bool(before.refused()[:2].any())
    assert bool(got.refused()[:2].all())
    assert bool(got.nu()[:2].isnan().all())
    assert got.n_refused() == before.n_refused() + 2
    assert bool((before.nu().isnan() == before.refused()).all())


def test_a_source_without_a_direction_of_its_own_is_refused() -> None:
    m = measured("trained", (8, 14))
    before = latent_scaling(m.moments, m.crosscoder, direction="own")
    latent = int((~before.refused()).nonzero()[0])
    weaker = m.columns(before.pair[1 - int(before.reference[latent])])
    crosscoder = copy.deepcopy(m.crosscoder)
    with torch.no_grad():
        crosscoder.W_dec[latent, weaker] = 0.0
    got = latent_scaling(m.moments, crosscoder, direction="own")
    assert bool(got.nu()[latent].isnan())
    assert bool(got.refused()[latent])
    assert got.n_refused() == before.n_refused() + 1


def test_the_order_of_the_pair_does_not_matter() -> None:
    m = measured("trained")
    one, two = (latent_scaling(m.moments, m.crosscoder, pair=p) for p in (None, ("distilled", "base")))
    assert_close(one.nu("reconstruction"), two.nu("reconstruction"), equal_nan=True)
    assert torch.equal(one.passes_gates(), two.passes_gates())


@pytest.mark.parametrize("spoiled", ["error", "reconstruction"])
def test_gates_are_two_sided(spoiled: Target) -> None:
    m = measured("trained")
    scaling = latent_scaling(m.moments, m.crosscoder)
    one, none = torch.ones(48, dtype=torch.float64), torch.zeros(48, dtype=torch.float64)
    beta = {target: torch.stack([one, none], dim=1) for target in TARGETS}
    passing = dataclasses.replace(scaling, beta=beta, reference=torch.zeros_like(scaling.reference))
    assert torch.equal(passing.passes_gates(), scaling.n_firings >= 100)
    negative = dataclasses.replace(passing, beta={**beta, spoiled: torch.stack([one, -one], dim=1)})
    assert not bool(negative.passes_gates().any())
