"""Free directions are least-squares fits; strengths and cosines are unbiased under noise."""

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from crosscoders.diffing.batches import block_of
from crosscoders.diffing.measures.free_direction import FreeDirection, free_direction
from tests.diffing.measured import Measured, measured

KINDS = ("random", "trained")


def well_fired(m: Measured) -> list[int]:
    """Latents with at least 100 firings."""
    return ((m.f != 0).sum(0) >= 100).nonzero()[:, 0].tolist()


def restored(m: Measured, latent: int, source: str) -> Tensor:
    """Error with the latent's own part put back, on every row."""
    columns = m.columns(source)
    return m.error[:, columns] + m.f[:, latent, None] * m.W[latent, columns]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("widths", [(12, 12), (8, 14)])
def test_directions_are_brute_force_least_squares(kind: str, widths: tuple[int, ...]) -> None:
    m = measured(kind, widths)
    got = free_direction(m.moments, m.crosscoder)
    latents = well_fired(m)
    assert len(latents) >= 30
    for latent in latents:
        for source, directions in zip(got.pair, got.directions, strict=True):
            y = restored(m, latent, source)
            expected = torch.linalg.lstsq(m.f[:, latent, None], y).solution[0]
            assert float((directions[latent] - expected).norm() / expected.norm()) < 1e-5


def brute_products(m: Measured, latent: int, blocks: list[int]) -> Tensor:
    """Pairs of different blocks, one by one: U1.U1, U2.U2, U1.U2."""
    block, f = block_of(m.sequence), m.f[:, latent]
    y = [restored(m, latent, source) for source in ("base", "distilled")]
    a = [[f[block == g] @ part[block == g] for g in blocks] for part in y]
    c = [float(f[block == g].square().sum()) for g in blocks]
    pairs = [(g, h) for g in range(len(blocks)) for h in range(len(blocks)) if g != h]
    weight = sum(c[g] * c[h] for g, h in pairs)
    return torch.stack(
        [sum(a[s][g] @ a[t][h] for g, h in pairs) / weight for s, t in ((0, 0), (1, 1), (0, 1))]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_strengths_cosine_and_intervals_match_pairs_of_blocks(kind: str) -> None:
    m = measured(kind)
    got = free_direction(m.moments, m.crosscoder)
    assert got.kappa is not None
    for latent in well_fired(m)[:4]:
        u11, u22, u12 = brute_products(m, latent, list(range(20)))
        assert_close(got.rho_squared.value[latent], torch.stack([u11, u22]) / 12)
        assert_close(got.kappa.value[latent], u12 / (u11 * u22).sqrt())
        without = torch.stack(
            [brute_products(m, latent, [h for h in range(20) if h != g]) for g in range(20)]
        )
        ratio = without[:, :2].gather(1, torch.stack([u11, u22]).argsort().expand(20, 2))
        spread = ((ratio[:, 0] / ratio[:, 1]).var(unbiased=False) * 19).sqrt() * 2.0930240
        width = got.weaker_ratio_squared.high[latent] - got.weaker_ratio_squared.low[latent]
        assert_close(width / 2, spread, rtol=1e-6, atol=0.0)


def noisy(m: Measured, truth: Tensor, *, noise: float, generator: torch.Generator) -> FreeDirection:
    """The fit where every block sees f y = f^2 u + noise of variance f^2."""
    squares = m.moments.sum_squares[:, :, None]
    draws = torch.randn(m.moments.with_error.shape, generator=generator, dtype=torch.float64)
    with_error = squares * (truth - m.W) + noise * squares.sqrt() * draws
    return free_direction(dataclasses.replace(m.moments, with_error=with_error), m.crosscoder)


def test_strength_is_unbiased_and_its_interval_covers(generator: torch.Generator) -> None:
    m = measured("random")
    live = well_fired(m)
    truth = torch.full_like(m.W, 0.02)
    fits = [noisy(m, truth, noise=0.5, generator=generator) for _ in range(60)]
    rho = torch.stack([fit.rho_squared.value[live] for fit in fits])
    naive = torch.stack([fit.directions[0][live].square().mean(dim=1) for fit in fits])
    covers = [(fit.rho_squared.low[live] < 4e-4) & (fit.rho_squared.high[live] > 4e-4) for fit in fits]
    error = rho.std() / rho.numel() ** 0.5
    assert abs(float(rho.mean()) - 4e-4) < 4 * float(error)
    assert float(naive.mean()) > 4e-4 + 20 * float(error)
    assert 0.9 < float(torch.stack(covers).double().mean()) < 0.98


def test_rotated_absent_and_halved_features_are_told_apart(generator: torch.Generator) -> None:
    m = measured("random", (12, 12))
    truth = torch.zeros_like(m.W)
    truth[:, 0] = 1.0
    truth[0:10, 12], truth[10:20, 13], truth[20:30, 12] = 0.5, 1.0, 0.0
    got = noisy(m, truth, noise=0.02, generator=generator)
    assert got.kappa is not None
    halved, rotated, absent = ([i for i in well_fired(m) if i // 10 == k] for k in range(3))
    assert bool((got.stronger[halved + absent] == 0).all())
    assert_close(
        got.weaker_ratio_squared.value[halved], torch.full((len(halved),), 0.25).double(), rtol=0.05, atol=0
    )
    assert bool((got.kappa.value[halved] > 0.98).all())
    assert bool(got.kappa.is_below(0.3)[rotated].all())
    assert bool((got.weaker_ratio_squared.value[rotated] > 0.8).all())
    assert bool(got.weaker_ratio_squared.is_below(0.01)[absent].all())


def test_a_map_brings_unequal_widths_together(generator: torch.Generator) -> None:
    m = measured("trained", (8, 14))
    linear_map = torch.randn(14, 8, generator=generator, dtype=torch.float64)
    alone = free_direction(m.moments, m.crosscoder)
    mapped = free_direction(m.moments, m.crosscoder, linear_map=linear_map)
    assert alone.kappa is None
    assert mapped.kappa is not None
    assert_close(alone.rho_squared.value, mapped.rho_squared.value, equal_nan=True)
    truth = torch.cat([m.W[:, :8], m.W[:, :8] @ linear_map.T], dim=1)

    moments = dataclasses.replace(m.moments, with_error=m.moments.sum_squares[:, :, None] * (truth - m.W))
    kappa = free_direction(moments, m.crosscoder, linear_map=linear_map).kappa
    assert kappa is not None
    live = well_fired(m)
    assert_close(kappa.value[live], torch.ones(len(live), dtype=torch.float64))

    with pytest.raises(ValueError, match=r"must have shape \(14, 8\)"):
        free_direction(m.moments, m.crosscoder, linear_map=linear_map.T)


def test_the_order_of_the_pair_only_names_it() -> None:
    m = measured("trained")
    one = free_direction(m.moments, m.crosscoder)
    two = free_direction(m.moments, m.crosscoder, pair=("distilled", "base"))
    assert_close(one.rho_squared.low, two.rho_squared.low.flip(1), equal_nan=True)
    assert_close(one.weaker_ratio_squared.high, two.weaker_ratio_squared.high, equal_nan=True)
    is_defined = one.stronger >= 0
    assert int(is_defined.sum()) > 20
    assert bool((one.stronger + two.stronger == 1)[is_defined].all())


def test_too_few_blocks_leave_the_figures_undefined() -> None:
    m = measured("random")
    squares = m.moments.sum_squares.clone()
    squares[1:, 0], squares[2:, 1:] = 0.0, 0.0
    got = free_direction(dataclasses.replace(m.moments, sum_squares=squares), m.crosscoder)
    assert bool(got.rho_squared.value[0].isnan().all())
    assert int(got.stronger[0]) == -1
    fires_twice = (squares > 0).sum(dim=0) == 2
    assert int(fires_twice.sum()) > 20
    assert bool(got.rho_squared.value[fires_twice].isfinite().all())
    assert bool(got.rho_squared.low.isnan().all())
    other = measured("random", (8, 14)).crosscoder
    with pytest.raises(ValueError, match="collect moments with this crosscoder"):
        free_direction(m.moments, other)
