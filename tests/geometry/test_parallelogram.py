"""The loss against loops, its expectation, and what is dropped."""

import numpy as np
import pytest
import torch
from torch import Tensor

from crosscoders.geometry.parallelogram import (
    SCALES,
    Scale,
    draw_quadruples,
    expected_gaussian_loss,
    mean_loss,
    mean_squared_norm,
    parallelogram_loss,
    quadruple_points,
)
from tests.geometry.points import gaussian_pairs


def loop_loss(quadruple: np.ndarray, scale: str, reference: float | None) -> float:
    e0, e1, e2, e3 = quadruple
    if scale == "dp":
        reference = float(np.mean(quadruple**2))
    if scale == "dp_0m":
        reference = float(np.mean((quadruple - quadruple.mean(axis=0)) ** 2))
    assert reference is not None
    return sum(float(x) ** 2 for x in e0 + e3 - (e1 + e2)) / reference


def reference_of(scale: str, points: Tensor) -> float | None:
    return mean_squared_norm(points) if scale in ("all", "task") else None


@pytest.mark.parametrize("scale", SCALES)
def test_loss_agrees_with_a_loop(scale, generator) -> None:
    inputs, outputs = gaussian_pairs(40, 7)
    quadruples = draw_quadruples(40, n_quadruples=200, generator=generator)
    points = quadruple_points(inputs + 0.5, outputs, quadruples=quadruples)
    reference = reference_of(scale, points)
    expected = [loop_loss(q, scale, reference) for q in points.numpy()]
    got = parallelogram_loss(points, scale=scale, reference=reference)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("n_dimensions", [3, 20])
def test_independent_gaussian_points_have_the_expected_loss(scale, n_dimensions, generator) -> None:
    inputs, outputs = gaussian_pairs(4_000, n_dimensions)
    quadruples = draw_quadruples(4_000, n_quadruples=10_000, generator=generator)
    losses = parallelogram_loss(
        quadruple_points(inputs, outputs, quadruples=quadruples),
        scale=scale,
        reference=reference_of(scale, torch.cat([inputs, outputs])),
    )
    found = mean_loss(losses)
    assert found.loss == pytest.approx(expected_gaussian_loss(scale, n_dimensions=n_dimensions), rel=0.02)
    assert (found.n_kept, found.n_trivial, found.n_degenerate) == (10_000, 0, 0)


@pytest.mark.parametrize("scale", SCALES)
def test_constructed_parallelograms_have_exactly_no_loss(scale, generator) -> None:
    inputs = torch.randint(-50, 50, (60, 5), generator=generator).double()
    quadruples = draw_quadruples(60, n_quadruples=500, generator=generator)
    step = torch.tensor([3.0, -1.0, 0.0, 7.0, 2.0])
    points = quadruple_points(inputs, inputs + step, quadruples=quadruples)
    losses = parallelogram_loss(points, scale=scale, reference=reference_of(scale, points))
    assert (losses == 0).all()


def test_losses_do_not_change_with_rotation_shift_or_scale(generator) -> None:
    points = torch.randn(50, 4, 6, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    centered = parallelogram_loss(points, scale="dp_0m")
    torch.testing.assert_close(parallelogram_loss(3 * points @ turn + 5, scale="dp_0m"), centered)
    torch.testing.assert_close(
        parallelogram_loss(3 * points @ turn, scale="dp"), parallelogram_loss(points, scale="dp")
    )


def test_trivial_and_degenerate_quadruples_are_dropped_and_counted() -> None:
    a, b, c = torch.tensor([0.1, 0.7]), torch.tensor([2.0, -0.3]), torch.tensor([1.1, 5.0])
    same_pairs, same_words, one_point = [a, b, a, b], [a, a, c, c], [a, a, a, a]
    useful = [a, b, c, a]
    points = torch.stack([torch.stack(q) for q in (same_pairs, same_words, one_point, useful)])
    found = mean_loss(parallelogram_loss(points, scale="dp_0m"))
    assert (found.n_kept, found.n_trivial, found.n_degenerate) == (1, 2, 1)
    assert found.loss == pytest.approx(loop_loss(points[3].double().numpy(), "dp_0m", None))
    assert mean_loss(parallelogram_loss(points, scale="dp")).n_trivial == 3
    assert mean_loss(parallelogram_loss(0 * points, scale="dp")).n_degenerate == 4


def test_quadruples_never_pair_a_pair_with_itself_and_cover_all_others(generator) -> None:
    quadruples = draw_quadruples(5, generator=generator)
    assert quadruples.shape == (10_000, 2)
    counts = torch.bincount(quadruples[:, 0] * 5 + quadruples[:, 1], minlength=25).reshape(5, 5)
    assert (counts.diag() == 0).all()
    assert (counts[~torch.eye(5, dtype=torch.bool)] > 400).all()


def test_bad_references_and_points_raise(generator) -> None:
    points = torch.randn(3, 4, 2, generator=generator)
    bad: tuple[tuple[Scale, float | None], ...] = (("all", None), ("dp", 1.0), ("task", 0.0))
    for scale, reference in bad:
        with pytest.raises(ValueError, match="reference"):
            parallelogram_loss(points, scale=scale, reference=reference)
    points[1, 2, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        parallelogram_loss(points, scale="dp")
    with pytest.raises(ValueError, match="at least 2 pairs"):
        draw_quadruples(1, generator=generator)
