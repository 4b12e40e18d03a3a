"""The permutation null has uniform p-values, and intervals come from pairs."""

import math

import pytest
import torch
from torch import Tensor

from crosscoders.bootstrap import percentile_interval
from crosscoders.geometry.parallelogram import (
    SCALES,
    Scale,
    draw_quadruples,
    mean_loss,
    mean_squared_norm,
    parallelogram_loss,
    quadruple_points,
)
from crosscoders.geometry.resampling import (
    draw_permutations,
    draw_resamples,
    permutation_null,
    resampled_losses,
    two_sided_p_value,
)
from tests.geometry.points import gaussian_pairs, parallel_pairs


def direct_mean(inputs: Tensor, outputs: Tensor, quadruples: Tensor, *, scale: Scale, vocabulary: float):
    """The statistic by way of the four points."""
    own = mean_squared_norm(torch.stack([inputs, outputs]))
    reference = {"all": vocabulary, "task": own}.get(scale)
    points = quadruple_points(inputs, outputs, quadruples=quadruples)
    return mean_loss(parallelogram_loss(points, scale=scale, reference=reference))


def with_repeats(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Repeated words, so that some quadruples are trivial, in permuted data too."""
    inputs, outputs = inputs.clone(), outputs.clone()
    inputs[1], outputs[1] = inputs[0], outputs[0]
    outputs[2], outputs[3] = inputs[2], inputs[3]
    return inputs, outputs


@pytest.mark.parametrize("scale", SCALES)
def test_null_is_the_statistic_of_each_shuffled_data_set(scale, generator) -> None:
    inputs, outputs = with_repeats(*gaussian_pairs(12, 4))
    vocabulary = 3.7 if scale == "all" else None
    quadruples = draw_quadruples(12, n_quadruples=300, generator=generator)
    permutations = draw_permutations(12, n_permutations=25, generator=generator)
    null = permutation_null(
        inputs, outputs, quadruples=quadruples, permutations=permutations, scale=scale, reference=vocabulary
    )
    expected = [
        direct_mean(inputs, outputs[order], quadruples, scale=scale, vocabulary=3.7).loss
        for order in (torch.arange(12), *permutations)
    ]
    torch.testing.assert_close(null.losses.tolist(), expected[1:], rtol=1e-9, atol=0)
    assert null.observed == pytest.approx(expected[0], rel=1e-9)
    assert null.p_value == (1 + sum(x <= expected[0] for x in expected[1:])) / 26


@pytest.mark.parametrize("scale", SCALES)
def test_resampled_losses_leave_out_quadruples_of_a_pair_with_itself(scale, generator) -> None:
    inputs, outputs = with_repeats(*gaussian_pairs(9, 4))
    quadruples = draw_quadruples(9, n_quadruples=200, generator=generator)
    resamples = draw_resamples(9, n_resamples=20, generator=generator)
    got = resampled_losses(
        inputs,
        outputs,
        quadruples=quadruples,
        resamples=resamples,
        scale=scale,
        reference=3.7 if scale == "all" else None,
    )
    for value, sample in zip(got.tolist(), resamples, strict=True):
        apart = quadruples[sample[quadruples[:, 0]] != sample[quadruples[:, 1]]]
        expected = direct_mean(inputs[sample], outputs[sample], apart, scale=scale, vocabulary=3.7)
        assert value == pytest.approx(expected.loss, rel=1e-9)


def p_values_of_shuffled_data(*, n_sets: int, n_permutations: int, n_pairs: int, seed: int) -> Tensor:
    """Data sets whose outputs are shuffled at random: the null is true in each."""
    generator = torch.Generator().manual_seed(seed)
    inputs, outputs = with_repeats(*parallel_pairs(n_pairs, 5, noise=0.3, seed=seed))
    p_values = []
    for _ in range(n_sets):
        null = permutation_null(
            inputs,
            outputs[torch.randperm(n_pairs, generator=generator)],
            quadruples=draw_quadruples(n_pairs, n_quadruples=500, generator=generator),
            permutations=draw_permutations(n_pairs, n_permutations=n_permutations, generator=generator),
            scale="dp",
        )
        p_values.append(null.p_value)
    return torch.tensor(p_values, dtype=torch.float64)


def test_permutation_p_values_of_shuffled_data_are_uniform() -> None:
    p_values = p_values_of_shuffled_data(n_sets=200, n_permutations=199, n_pairs=24, seed=0).sort().values
    above = torch.arange(1, 201, dtype=torch.float64) / 200 - p_values
    distance = float(torch.maximum(above, 1 / 200 - above).max())
    assert distance < 0.115


def test_a_planted_relation_is_found_and_lies_far_below_its_null(generator) -> None:
    inputs, outputs = parallel_pairs(60, 10, noise=0.3)
    null = permutation_null(
        inputs,
        outputs,
        quadruples=draw_quadruples(60, generator=generator),
        permutations=draw_permutations(60, n_permutations=199, generator=generator),
        scale="task",
    )
    assert null.p_value == 1 / 200
    assert null.observed < 0.1 * null.mean
    assert null.dropped_share == 0


def test_pairs_that_leave_no_quadruple_raise_but_a_permutation_may(generator) -> None:
    points = torch.randn(2, 3, generator=generator)
    quadruples = draw_quadruples(2, n_quadruples=10, generator=generator)
    permutations = torch.tensor([[1, 0], [0, 1]])
    options = {"quadruples": quadruples, "permutations": permutations, "scale": "dp"}
    with pytest.raises(ValueError, match="all 10 quadruples of 2 pairs"):
        permutation_null(points, points, **options)
    null = permutation_null(points, points.flip(0), **options)
    assert null.losses.isnan().tolist() == [True, False]
    assert null.p_value == 1.0


def spread(n_pairs: int, n_quadruples: int) -> float:
    inputs, outputs = gaussian_pairs(n_pairs, 5)
    generator = torch.Generator().manual_seed(1)
    losses = resampled_losses(
        inputs,
        outputs,
        quadruples=draw_quadruples(n_pairs, n_quadruples=n_quadruples, generator=generator),
        resamples=draw_resamples(n_pairs, n_resamples=400, generator=generator),
        scale="task",
    )
    return float(losses.std())


def test_intervals_narrow_with_more_pairs_not_with_more_quadruples() -> None:
    assert spread(40, 100_000) > 0.8 * spread(40, 5_000)
    assert spread(360, 5_000) < 0.6 * spread(40, 5_000)


@pytest.mark.slow
def test_intervals_cover_the_true_mean_about_as_often_as_they_say() -> None:
    n_covered = 0
    for seed in range(200):
        inputs, outputs = gaussian_pairs(60, 5, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        losses = resampled_losses(
            inputs,
            outputs,
            quadruples=draw_quadruples(60, n_quadruples=2_000, generator=generator),
            resamples=draw_resamples(60, n_resamples=400, generator=generator),
            scale="all",
            reference=5.0,
        )
        low, high = percentile_interval(losses, confidence=0.95)
        n_covered += low <= 4.0 <= high
    assert 178 <= n_covered <= 198


def test_percentiles_and_two_sided_p_values() -> None:
    values = torch.cat([torch.arange(1.0, 101.0), torch.tensor([float("nan")])])
    assert percentile_interval(values, confidence=0.9) == pytest.approx((5.95, 95.05))
    assert math.isnan(percentile_interval(values[-1:], confidence=0.9)[0])
    assert two_sided_p_value(values) == pytest.approx(2 / 101)
    assert two_sided_p_value(-values) == pytest.approx(2 / 101)
    assert two_sided_p_value(values - 50.5) == 1.0


def test_task_scale_takes_no_reference(generator) -> None:
    inputs, outputs = gaussian_pairs(5, 3)
    with pytest.raises(ValueError, match="pairs' own points"):
        resampled_losses(
            inputs,
            outputs,
            quadruples=draw_quadruples(5, n_quadruples=9, generator=generator),
            resamples=draw_resamples(5, n_resamples=3, generator=generator),
            scale="task",
            reference=1.0,
        )
