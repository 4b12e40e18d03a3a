"""Share of the second model in what a latent does."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import crosscoders.diffing.attribution.relie as relie_module
from crosscoders.bootstrap import clustered_mean
from crosscoders.diffing.attribution.relie import RelIE, relie
from crosscoders.diffing.attribution.targets import Attribution
from crosscoders.sources import Source

N_ROWS, PER_ROW = 60, 5


def attribution_of(mean: Tensor, *, noise: float, seed: int = 0) -> Attribution:
    """Effects scattered about a mean [latent source], with noise that a row's targets share."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(N_ROWS).repeat_interleave(PER_ROW)
    shared, own = (
        torch.randn(n, *mean.shape, generator=generator, dtype=torch.float64) for n in (N_ROWS, len(rows))
    )
    effects = mean.double() + noise * (shared[rows] + own)
    nothing = torch.zeros(len(rows), mean.shape[1], dtype=torch.float64)
    return Attribution(
        sources=tuple(Source(name=f"model {s}", d_model=4 + s) for s in range(mean.shape[1])),
        latents=torch.arange(len(mean)),
        rows=rows,
        effects=effects,
        metric=nothing,
        removed=nothing,
    )


def relie_of(attribution: Attribution, *, pair: tuple[str, str] | None = None, seed: int = 0) -> RelIE:
    return relie(attribution, generator=torch.Generator().manual_seed(seed), pair=pair)


def test_intervals_of_effects_are_those_of_a_clustered_mean() -> None:
    attribution = attribution_of(torch.tensor([[0.3, -0.2, 0.0], [1.0, 0.0, 2.0]]), noise=0.5)
    found = relie_of(attribution)
    assert found.pair == ("model 0", "model 2")
    for latent in range(2):
        for at, source in enumerate((0, 2)):
            expected = clustered_mean(
                attribution.effects[:, latent, source],
                attribution.rows,
                generator=torch.Generator().manual_seed(0),
            )
            got = [float(each[latent, at]) for each in (found.effect, found.effect_low, found.effect_high)]
            assert_close(got, [expected.mean, expected.low, expected.high])


def test_the_share_is_that_of_the_signed_means() -> None:
    mean = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [-1.0, 3.0], [0.5, -0.5]])
    found = relie_of(attribution_of(mean, noise=0.0))
    assert_close(found.value, torch.tensor([1.0, 0.0, 0.5, 0.75, 0.5], dtype=torch.float64))
    assert not bool(found.is_blank.any())
    noisy = relie_of(attribution_of(mean, noise=0.3))
    assert bool(((noisy.low <= noisy.value) & (noisy.value <= noisy.high)).all())
    assert bool(((noisy.value - found.value).abs() < 0.15).all())


def test_noise_without_direction_is_blank_however_large() -> None:
    mean = torch.zeros(400, 2)
    mean[:8, 1] = 5.0
    found = relie_of(attribution_of(mean, noise=1.0))
    assert bool((~found.is_blank[:8]).all())
    # Two intervals of 95%: about one latent in ten has one that misses zero.
    assert 0.03 < float((~found.is_blank[8:]).double().mean()) < 0.2
    for figure in (found.value, found.low, found.high):
        assert torch.equal(figure.isnan(), found.is_blank)


def test_swapping_the_pair_turns_the_share_around() -> None:
    attribution = attribution_of(torch.tensor([[0.3, 0.9], [1.0, -0.4]]), noise=0.4)
    forward = relie_of(attribution)
    back = relie_of(attribution, pair=("model 1", "model 0"))
    assert_close(forward.value, 1 - back.value)
    assert_close(forward.low, 1 - back.high)


def test_one_row_of_text_leaves_everything_blank() -> None:
    attribution = attribution_of(torch.tensor([[1.0, 2.0]]), noise=0.0)
    one = Attribution(**{**vars(attribution), "rows": torch.zeros_like(attribution.rows)})
    found = relie_of(one)
    assert bool(found.is_blank.all() & found.value.isnan().all() & found.effect_low.isnan().all())
    assert found.effect.tolist() == [[1.0, 2.0]]


def test_a_latent_without_any_effect_is_blank() -> None:
    found = relie_of(attribution_of(torch.zeros(1, 2), noise=0.0))
    assert bool(found.is_blank.all() & found.value.isnan().all())


def test_many_latents_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    attribution = attribution_of(torch.linspace(-1, 1, 14).reshape(7, 2), noise=0.2)
    whole = relie_of(attribution)
    monkeypatch.setattr(relie_module, "_ESTIMATES_AT_ONCE", 6000)  # three latents of 1000 resamples
    parts = relie_of(attribution)
    for name in ("value", "low", "high", "effect_low", "effect_high"):
        assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-12, atol=1e-14, equal_nan=True)


def test_bad_settings_raise(generator: torch.Generator) -> None:
    attribution = attribution_of(torch.ones(1, 2), noise=0.0)
    with pytest.raises(ValueError, match="no source is named 'teacher'"):
        relie(attribution, generator=generator, pair=("model 0", "teacher"))
    with pytest.raises(ValueError, match="two different sources"):
        relie(attribution, generator=generator, pair=("model 0", "model 0"))
    with pytest.raises(ValueError, match=r"confidence must lie between 0 and 1, got 1\.5"):
        relie(attribution, generator=generator, confidence=1.5)
