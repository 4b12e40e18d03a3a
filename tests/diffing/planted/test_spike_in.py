"""Plants in real activations: where, when and how strong they are."""

import math
from itertools import pairwise

import pytest
import torch

from crosscoders.diffing.planted.spike_in import PAGE_ROWS, SpikeIn, Spikes, typical_strength
from crosscoders.sources import Source

SOURCES = (
    Source(name="base", d_model=24, scale=0.5),
    Source(name="distilled", d_model=40, scale=2.0),
)
WIDTH = 64


def draw(spike_in: SpikeIn, seed: int = 0, **changes) -> Spikes:
    rows = torch.randn(80, WIDTH, generator=torch.Generator().manual_seed(7))
    given = {"typical_strength": 0.2, "decoder_rows": rows, **changes}
    return spike_in.draw(SOURCES, generator=torch.Generator().manual_seed(seed), **given)


def real_rows(n: int) -> torch.Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(3))


def test_plants_are_the_same_however_batches_are_cut() -> None:
    spikes, again = draw(SpikeIn()), draw(SpikeIn())
    n = 2 * PAGE_ROWS + 700
    rows = real_rows(n)
    whole = spikes.plant(rows, 5)
    edges = [0, 1, 900, PAGE_ROWS - 5, PAGE_ROWS + 300, n]
    cut = [again.plant(rows[a:b], 5 + a) for a, b in reversed(list(pairwise(edges)))]
    assert torch.equal(torch.cat(cut[::-1]), whole)
    assert torch.equal(again.activations(900, 5 + 1234), spikes.activations(n, 5)[1234 : 1234 + 900])
    assert not torch.equal(draw(SpikeIn(), seed=1).activations(n, 0), spikes.activations(n, 0))


def test_planting_adds_each_plant_to_its_owner_and_leaves_the_rows_it_got() -> None:
    spikes, rows = draw(SpikeIn(rates=(0.05,))), real_rows(3000)
    before = rows.clone()
    added = spikes.plant(rows, 100).double() - rows.double()
    expected = spikes.activations(3000, 100).double() @ spikes.directions.double()
    torch.testing.assert_close(added, expected, rtol=0.0, atol=1e-5)
    assert torch.equal(rows, before)
    for feature, direction in zip(spikes.features, spikes.directions):
        is_zero = (direction[:24] == 0).all(), (direction[24:] == 0).all()
        assert [bool(part) for part in is_zero] == [feature.owner != 0, feature.owner != 1]


def test_plants_have_the_strength_asked_for_and_owners_take_turns() -> None:
    spikes = draw(SpikeIn(strength=0.3))
    norms = spikes.directions.norm(dim=1)
    mean_norms = [math.sqrt(24) / 0.5, math.sqrt(40) / 2.0]
    expected = torch.tensor([0.3 * mean_norms[feature.owner] for feature in spikes.features])
    torch.testing.assert_close(norms, expected)
    assert [feature.owner for feature in spikes.features].count(0) == len(spikes.features) / 2
    assert draw(SpikeIn()).directions.norm() == pytest.approx(
        float(spikes.directions.norm()) * 2 / 3, rel=1e-5
    )


def test_plants_are_on_at_their_rate_and_uniformly_strong() -> None:
    spikes = draw(SpikeIn(rates=(0.02, 0.005)))
    n = 50 * PAGE_ROWS
    activations = spikes.activations(n, 0)
    rates = torch.tensor([feature.rate for feature in spikes.features])
    deviations = ((activations > 0).float().mean(0) - rates) / (rates * (1 - rates) / n).sqrt()
    assert float(deviations.abs().max()) < 4.5
    assert 0.6 < float(deviations.square().mean()) < 1.6
    values = activations[activations > 0].sort().values
    expected = torch.linspace(0.5, 1.5, len(values))
    assert float((values - expected).abs().max()) < 1.63 / math.sqrt(len(values))  # Kolmogorov at 1%


def test_plants_are_on_independently_of_each_other() -> None:
    spikes = draw(SpikeIn(rates=(0.1,), n_per_rate=8))
    on = (spikes.activations(20 * PAGE_ROWS, 0) > 0).double()
    correlation = torch.corrcoef(on.T) - torch.eye(16)
    assert float(correlation.abs().max()) < 4.5 / math.sqrt(len(on))


def test_decoder_plants_take_the_owners_part_of_a_row_of_their_own() -> None:
    rows = torch.randn(80, WIDTH, generator=torch.Generator().manual_seed(7))
    spikes = draw(SpikeIn(directions="both"))
    planted = [(f, d) for f, d in zip(spikes.features, spikes.directions) if f.kind == "reused"]
    assert len({feature.known_as for feature, _ in planted}) == len(planted) == 48
    for feature, direction in planted:
        part = slice(0, 24) if feature.owner == 0 else slice(24, 64)
        cosine = torch.nn.functional.cosine_similarity(direction[part], rows[feature.known_as, part], dim=0)
        assert float(cosine) == pytest.approx(1.0, abs=1e-5)


def test_kinds_follow_the_directions_asked_for() -> None:
    kinds = {
        directions: [feature.kind for feature in draw(SpikeIn(directions=directions)).features]
        for directions in ("random", "decoder", "both")
    }
    assert kinds["random"] == ["exclusive"] * 48
    assert kinds["decoder"] == ["reused"] * 48
    assert sorted(kinds["both"]) == ["exclusive"] * 48 + ["reused"] * 48


def test_planting_keeps_the_dtype() -> None:
    planted = draw(SpikeIn()).plant(real_rows(100).bfloat16(), 0)
    assert planted.dtype == torch.bfloat16


def test_a_typical_latent_writes_the_median_share_of_live_ones() -> None:
    norms = torch.tensor([[1.0, 0.0], [2.0, 2.0], [0.0, 3.0], [9.0, 9.0], [9.0, 9.0]])
    mean = torch.tensor([2.0, 1.0, 1.0, 0.0, math.nan])
    shares = [2.0 / math.sqrt(24), 2.0 / math.sqrt(24), 3.0 / math.sqrt(40)]
    assert typical_strength(norms, mean, sources=SOURCES) == pytest.approx(sorted(shares)[1])
    with pytest.raises(ValueError, match="no latent ever fires"):
        typical_strength(norms, torch.zeros(5), sources=SOURCES)
    with pytest.raises(ValueError, match="expected norms"):
        typical_strength(norms, mean, sources=SOURCES[:1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SpikeIn(rates=()), "rates must lie"),
        (lambda: SpikeIn(n_per_rate=0), "n_per_rate"),
        (lambda: SpikeIn(strength=math.inf), "strength"),
        (lambda: draw(SpikeIn(), typical_strength=None), "typical_strength"),
        (lambda: draw(SpikeIn(), typical_strength=0.0), "strength"),
        (lambda: draw(SpikeIn(), decoder_rows=None), "need as many decoder_rows"),
        (lambda: draw(SpikeIn(), decoder_rows=torch.randn(47, WIDTH)), "got 47"),
        (lambda: draw(SpikeIn(), decoder_rows=torch.zeros(80, WIDTH)), "zero in source"),
        (lambda: SpikeIn(strength=1.0, directions="random").draw(SOURCES[:1], generator=torch.Generator()),
         "fewer than two"),
        (lambda: draw(SpikeIn()).activations(5, -1), "negative"),
        (lambda: draw(SpikeIn()).plant(torch.zeros(4, 10), 0), r"\[batch, 64\]"),
        (lambda: Spikes(features=(), directions=torch.zeros(1, 64), sources=SOURCES, seed=0), "directions"),
    ],
)  # fmt: skip
def test_plants_that_cannot_be_made_say_why(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
