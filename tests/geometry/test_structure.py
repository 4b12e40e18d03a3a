"""Structure measures against brute force, and what leaves them unchanged."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from crosscoders.geometry.principal import principal_axes
from crosscoders.geometry.structure import (
    ActivationCovariance,
    cosine_structure_correlation,
    effective_dimension,
    leading_axes,
    linear_cka,
    nearest_cosines,
    spectrum,
    subspace_overlap,
)
from crosscoders.sources import Source

SOURCES = (Source(name="base", d_model=5), Source(name="distilled", d_model=8))


def random_matrix(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(n: int, *, seed: int = 1) -> Tensor:
    return torch.linalg.qr(random_matrix(n, n, seed=seed)).Q


def cka(x: Tensor, y: Tensor) -> float:
    sources = (Source(name="x", d_model=x.shape[1]), Source(name="y", d_model=y.shape[1]))
    covariance = ActivationCovariance(sources)
    covariance.update(torch.cat([x, y], dim=1))
    return linear_cka(
        covariance.block("x", "x"), covariance.block("y", "y"), cross=covariance.block("x", "y")
    )


def test_streamed_covariance_equals_numpy() -> None:
    rows = random_matrix(101, 13) @ random_matrix(13, 13, seed=2) + 1000
    covariance = ActivationCovariance(SOURCES)
    for chunk in rows.tensor_split(9):
        covariance.update(chunk)
    expected = torch.from_numpy(np.cov(rows.numpy(), rowvar=False))
    assert_close(covariance.block("base", "distilled"), expected[:5, 5:])
    assert_close(covariance.block("distilled", "distilled"), expected[5:, 5:])


def test_principal_axes_are_the_eigenvectors_of_the_covariance() -> None:
    points = random_matrix(50, 6) @ random_matrix(6, 6, seed=2)
    found = principal_axes(points, n_components=4)
    values, vectors = np.linalg.eigh(np.cov(points.numpy(), rowvar=False))
    np.testing.assert_allclose(found.variances, values[::-1][:4])
    leading = leading_axes(torch.from_numpy(np.cov(points.numpy(), rowvar=False)), n_components=4)
    for axes in (found.axes, leading):
        np.testing.assert_allclose(np.abs(axes.T.numpy() @ vectors[:, ::-1][:, :4]), np.eye(4), atol=1e-9)
    assert_close(found.project(points).mean(dim=0), torch.zeros(4, dtype=torch.float64))


def test_principal_axes_refuse_too_few_points_or_dimensions() -> None:
    with pytest.raises(ValueError, match="need more than 4 different vectors, got 4"):
        principal_axes(random_matrix(4, 9), n_components=4)
    with pytest.raises(ValueError, match="1 to the width 9, got 10"):
        principal_axes(random_matrix(40, 9), n_components=10)


def test_effective_dimension_counts_equal_axes_and_ignores_rotation() -> None:
    assert effective_dimension(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert effective_dimension(torch.tensor([5.0, 0.0])) == pytest.approx(1)
    covariance = torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64))
    turned = rotation(3) @ covariance @ rotation(3).T
    assert effective_dimension(spectrum(7 * turned)) == pytest.approx(49 / 21)
    trace, square = float(turned.trace()), float((turned @ turned).trace())
    assert effective_dimension(spectrum(turned)) == pytest.approx(trace**2 / square)


def test_subspace_overlap_is_the_mean_squared_cosine_of_principal_angles() -> None:
    u, v = rotation(9, seed=3)[:, :3], rotation(9, seed=4)[:, :3]
    cosines = torch.linalg.svdvals(u.T @ v)
    assert subspace_overlap(u, v) == pytest.approx(float(cosines.square().mean()))
    assert subspace_overlap(u, u @ rotation(3)) == pytest.approx(1)
    whole = rotation(9, seed=3)
    assert subspace_overlap(u, whole[:, 3:6]) == pytest.approx(0, abs=1e-12)
    assert subspace_overlap(u, whole[:, :5]) == pytest.approx(1)
    random = [subspace_overlap(rotation(9, seed=s)[:, :3], u) for s in range(50, 250)]
    assert np.mean(random) == pytest.approx(3 / 9, abs=0.03)


def test_linear_cka_equals_the_gram_matrix_form() -> None:
    x, y = random_matrix(40, 5), random_matrix(40, 8, seed=2) + 3
    y[:, :5] += x
    center = torch.eye(40, dtype=torch.float64) - 1 / 40
    k, g = center @ x @ x.T @ center, center @ y @ y.T @ center
    expected = float((k * g).sum() / (k.norm() * g.norm()))
    assert cka(x, y) == pytest.approx(expected)
    assert cka(y, x) == pytest.approx(expected)


def test_linear_cka_ignores_rotation_shift_and_one_factor_but_not_more() -> None:
    x, y = random_matrix(60, 5), random_matrix(60, 5, seed=2)
    mixed = x + 0.5 * y
    assert cka(x, 3 * x @ rotation(5) - 8) == pytest.approx(1)
    assert cka(4 * mixed @ rotation(5) + 2, x) == pytest.approx(cka(mixed, x))
    assert cka(x, x * torch.tensor([9.0, 1, 1, 1, 1])) < 0.9
    assert cka(x, y) < 0.2


def test_nearest_cosines_equal_brute_force_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crosscoders.geometry.structure._ROWS_AT_ONCE", 4)
    decoder = random_matrix(11, 3)
    decoder[6] = 0
    decoder[7] = -2 * decoder[2]
    expected = [
        max(
            abs(float(torch.cosine_similarity(a, b, dim=0))) for j, b in enumerate(decoder) if j not in (i, 6)
        )
        for i, a in enumerate(decoder)
    ]
    found = nearest_cosines(decoder)
    assert found[6].isnan()
    kept = [i for i in range(11) if i != 6]
    np.testing.assert_allclose(found[kept], np.array(expected)[kept])
    assert found[2] == pytest.approx(1)


def test_cosine_structure_correlation_equals_numpy_and_ignores_rotation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("crosscoders.geometry.structure._ROWS_AT_ONCE", 4)
    a, b = random_matrix(11, 4) + 0.3, random_matrix(11, 6, seed=2)
    b[:, :4] += a
    upper = np.triu_indices(11, 1)
    units = [(m / m.norm(dim=1, keepdim=True)).numpy() for m in (a, b)]
    expected = np.corrcoef(np.stack([(unit @ unit.T)[upper] for unit in units]))[0, 1]
    assert cosine_structure_correlation(a, b) == pytest.approx(expected)
    lengths = random_matrix(11, 1, seed=5).abs() + 0.1
    assert cosine_structure_correlation(a, lengths * a @ rotation(4)) == pytest.approx(1)
    with_zero = [torch.cat([m, torch.zeros(1, m.shape[1])]) for m in (a, b)]
    assert cosine_structure_correlation(with_zero[0], with_zero[1]) == pytest.approx(expected)


def test_undefined_measures_raise() -> None:
    with pytest.raises(ValueError, match="do not vary"):
        effective_dimension(torch.zeros(3))
    with pytest.raises(ValueError, match="not orthonormal"):
        subspace_overlap(random_matrix(5, 2), rotation(5)[:, :2])
    with pytest.raises(ValueError, match="do not vary"):
        linear_cka(torch.zeros(2, 2), torch.eye(3), cross=torch.zeros(2, 3))
    covariance = ActivationCovariance(SOURCES)
    covariance.update(random_matrix(1, 13))
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        covariance.block("base", "base")
    with pytest.raises(ValueError, match="at least 2 latents"):
        nearest_cosines(random_matrix(1, 3))
    with pytest.raises(ValueError, match="at least 3 latents"):
        cosine_structure_correlation(random_matrix(2, 3), random_matrix(2, 3))
