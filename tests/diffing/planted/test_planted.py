"""Planted worlds: every feature is what its record says, at the rate that it says."""

import math
from dataclasses import replace

import pytest
import torch

from crosscoders.diffing.planted import KINDS, PlantedConfig, PlantedCounts, PlantedWorld
from crosscoders.diffing.planted.directions import random_directions, random_isometry

SMALL = PlantedCounts(n_shared=40, n_exclusive=4, n_reused=4, n_rotated=4, n_rescaled=4)


def make_world(**changes) -> PlantedWorld:
    config = PlantedConfig(**{"counts": SMALL, **changes})
    return PlantedWorld.make(config, generator=torch.Generator().manual_seed(0))


def draw(world: PlantedWorld, n_tokens: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    return world.sample(n_tokens, torch.Generator().manual_seed(seed))


def members(world: PlantedWorld, kind: str) -> list[int]:
    return [i for i, feature in enumerate(world.features) if feature.kind == kind]


def test_the_standard_world_has_the_features_and_the_activity_that_were_planned() -> None:
    world = PlantedWorld.make(PlantedConfig(), generator=torch.Generator().manual_seed(0))
    counts = {
        (kind, rate): sum(f.kind == kind and f.rate == rate for f in world.features)
        for kind in KINDS[1:]
        for rate in (0.08, 0.02, 0.005, 0.001)
    }
    assert len(world.features) == world.config.n_features == 512
    assert all(n == (8 if kind == "rescaled" else 16) for (kind, _), n in counts.items())
    assert 7.5 < sum(feature.rate for feature in world.features) < 9.5


@pytest.mark.parametrize("correlation", [0.0, 0.4])
def test_each_feature_is_on_at_its_rate_with_groups_and_parents(correlation: float) -> None:
    world = make_world(hierarchy=0.6, correlation=correlation, n_groups=4)
    n = 300_000
    assert sum(feature.parent is not None for feature in world.features) > 10
    on = torch.zeros(len(world.features))
    for seed in range(10):
        on += (draw(world, n // 10, seed)[1] > 0).sum(0)
    rates = torch.tensor([feature.rate for feature in world.features])
    deviations = (on / n - rates) / (rates * (1 - rates) / n).sqrt()
    assert float(deviations.abs().max()) < 4.5
    assert 0.7 < float(deviations.square().mean()) < 1.4


def test_a_child_is_on_only_while_its_parent_is() -> None:
    world = make_world(hierarchy=1.0)
    on = draw(world, 20_000)[1] > 0
    children = [(i, feature.parent) for i, feature in enumerate(world.features) if feature.parent is not None]
    assert children
    assert all(world.features[child].rate <= 0.005 for child, _ in children)
    assert not any(bool((on[:, child] & ~on[:, parent]).any()) for child, parent in children)


def test_correlation_is_that_of_the_gaussian_copula_within_groups_only() -> None:
    rates, share = (0.08,), 0.3
    world = make_world(correlation=share, n_groups=2, hierarchy=0.0, rates=rates, shared_rates=(0.08, 0.08))
    on = (draw(world, 100_000)[1] > 0).double()
    joint = on.T @ on / len(on)
    group = torch.tensor([feature.group for feature in world.features])
    is_same = (group[:, None] == group) & ~torch.eye(len(group), dtype=torch.bool)
    # P(both) = E_u[Phi((sqrt(c) u - t) / sqrt(1 - c))^2], integrated numerically
    normal = torch.distributions.Normal(0.0, 1.0)
    u = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    t = normal.icdf(torch.tensor(1 - rates[0], dtype=torch.float64))
    given = normal.cdf((math.sqrt(share) * u - t) / math.sqrt(1 - share))
    expected = float(torch.trapezoid(given**2 * normal.log_prob(u).exp(), u))
    assert float(joint[is_same].mean()) == pytest.approx(expected, rel=0.03)
    assert float(joint[group[:, None] != group].mean()) == pytest.approx(rates[0] ** 2, rel=0.03)


def test_activations_are_uniform_between_a_half_and_one_and_a_half() -> None:
    activations = draw(make_world(), 20_000)[1]
    values = activations[activations != 0].sort().values
    expected = torch.linspace(0.5, 1.5, len(values))
    assert float((values - expected).abs().max()) < 1.63 / math.sqrt(len(values))  # Kolmogorov at 1%


def test_rows_are_the_activations_times_the_directions_plus_noise_of_the_norm_asked_for() -> None:
    world = make_world(noise=0.3, d_models=(24, 40))
    rows, activations = draw(world, 20_000)
    first = 0
    for directions, mean_norm, source in zip(world.directions, world.mean_norms, world.sources()):
        part = rows[:, first : first + source.d_model]
        clean = activations @ directions
        ratio = (part - clean).norm(dim=1).mean() / clean.norm(dim=1).mean()
        assert float(ratio) == pytest.approx(0.3, rel=0.02)
        assert float(part.norm(dim=1).mean()) == pytest.approx(mean_norm, rel=0.02)
        assert source.scale == pytest.approx(math.sqrt(source.d_model) / mean_norm)
        first += source.d_model


def test_without_noise_rows_are_exactly_what_the_features_add() -> None:
    world = make_world(noise=0.0)
    rows, activations = draw(world, 500)
    expected = activations.double() @ torch.cat(world.directions, 1).double()
    torch.testing.assert_close(rows.double(), expected, rtol=1e-5, atol=1e-5)


def test_each_kind_is_written_as_its_name_says() -> None:
    world = make_world()
    norms = torch.stack([directions.norm(dim=1) for directions in world.directions], 1)
    image = world.directions[0] @ world.maps[1].T
    cosines = torch.nn.functional.cosine_similarity(image, world.directions[1])
    for i, feature in enumerate(world.features):
        owner, known = feature.owner, feature.known_as
        low = {"exclusive": 0.0, "reused": 0.0, "rescaled": 0.5}.get(feature.kind, 1.0)
        expected = [1.0 if source == owner else low for source in range(2)]
        assert norms[i].tolist() == pytest.approx(expected, abs=1e-5)
        if feature.kind in ("shared", "rescaled"):
            assert float(cosines[i]) == pytest.approx(1.0, abs=1e-5)
        if known is not None:
            assert world.features[known].kind == "shared"
            assert world.features[known].rate >= 0.005
            assert torch.equal(world.directions[owner][i], world.directions[owner][known])
    assert float(cosines[members(world, "rotated")].abs().max()) < 0.6


def test_reused_features_borrow_distinct_directions_and_owners_take_turns() -> None:
    world = make_world(d_models=(20, 30, 40), counts=replace(SMALL, n_shared=80, n_exclusive=6, n_reused=6))
    known = [world.features[i].known_as for i in members(world, "reused")]
    assert len(set(known)) == len(known) == 24
    for kind in ("exclusive", "reused"):
        owners = [world.features[i].owner for i in members(world, kind)]
        assert [owners.count(source) for source in range(3)] == [8, 8, 8]


def test_a_world_of_three_sources_writes_exclusive_features_to_one() -> None:
    world = make_world(d_models=(20, 30, 40))
    present = torch.stack([d[members(world, "exclusive")].norm(dim=1) > 0 for d in world.directions])
    assert present.sum(0).tolist() == [1] * 16
    assert [source.name for source in world.sources(("a", "b", "c"))] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="expected 3 names"):
        world.sources()


def test_a_map_keeps_lengths_and_a_narrower_source_projects() -> None:
    generator = torch.Generator().manual_seed(0)
    up = random_isometry(8, 12, generator=generator)
    down = random_isometry(12, 8, generator=generator)
    torch.testing.assert_close(up.T @ up, torch.eye(8))
    torch.testing.assert_close(down @ down.T, torch.eye(8))
    world = make_world(d_models=(48, 32))
    assert float((world.directions[1][0].norm() - 1).abs()) < 1e-5
    assert torch.equal(world.maps[0], torch.eye(48))


def test_without_a_linear_map_shared_directions_are_unrelated() -> None:
    world = make_world(linear_map=False, counts=replace(SMALL, n_rotated=0), d_models=(64, 64))
    shared = members(world, "shared")
    first, second = (directions[shared] for directions in world.directions)
    fitted = torch.linalg.lstsq(first[:32], second[:32]).solution  # 32 directions fix no map of 64 dimensions
    cosines = torch.nn.functional.cosine_similarity(first[32:] @ fitted, second[32:])
    assert world.maps is None
    assert float(cosines.abs().mean()) < 0.4


def test_overlap_brings_directions_nearer_to_each_other() -> None:
    def mean_square(overlap: float) -> float:
        rows = random_directions(200, 64, overlap=overlap, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(200))
        return float((rows @ rows.T).triu(1).square().sum() / (200 * 199 / 2))

    assert mean_square(0.0) == pytest.approx(1 / 64, rel=0.05)
    assert mean_square(0.5) > 2 / 64


def test_the_same_generator_gives_the_same_world_and_the_same_tokens() -> None:
    one, two = make_world(), make_world()
    assert one.features == two.features
    assert all(torch.equal(a, b) for a, b in zip(draw(one, 100), draw(two, 100)))
    other = PlantedWorld.make(one.config, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(one.directions[0], other.directions[0])


def test_measure_batches_number_sequences_of_64_rows_across_batches() -> None:
    world = make_world()
    served = list(world.measure_batches(320, generator=torch.Generator().manual_seed(1), batch_tokens=128))
    sequence = torch.cat([batch.sequence for batch, _ in served])
    assert [len(batch.rows) for batch, _ in served] == [128, 128, 64]
    assert sequence.bincount().tolist() == [64] * 5
    train = list(world.batches(300, generator=torch.Generator().manual_seed(1), batch_tokens=128))
    assert [len(rows) for rows in train] == [128, 128, 44]
    assert torch.equal(train[0], served[0][0].rows)
    with pytest.raises(ValueError, match="multiples of 64"):
        next(world.measure_batches(100, generator=torch.Generator()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_models": (64,)}, "two or more widths"),
        ({"rates": (0.0,)}, "rates must lie"),
        ({"shared_rates": (0.03, 0.001)}, "ascend"),
        ({"correlation": 1.0}, r"\[0, 1\)"),
        ({"rescale": 1.0}, "rescale"),
        ({"n_groups": 0}, "n_groups"),
        ({"linear_map": False}, "linear map"),
        ({"counts": replace(SMALL, n_reused=40)}, "160 reused features need"),
        ({"rates": (0.005,), "shared_rates": (0.005, 0.01), "hierarchy": 1.0}, "to depend on"),
    ],
)
def test_a_world_that_cannot_be_drawn_says_why(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_world(**changes)


def test_counts_must_not_be_negative() -> None:
    with pytest.raises(ValueError, match="negative"):
        PlantedCounts(n_shared=-1)
