"""The linear map between two sources, against least squares on an augmented system."""

import dataclasses

import pytest
import torch
from torch import Tensor

from crosscoders.diffing.batches import MeasureBatch
from crosscoders.diffing.measures.linear_map import fit_linear_map
from crosscoders.sources import Source

SOURCES = (
    Source(name="base", d_model=5, scale=0.4),
    Source(name="middle", d_model=3),
    Source(name="distilled", d_model=7, scale=2.5),
)
BASE, DISTILLED = slice(0, 5), slice(8, 15)


def some_rows(n: int = 400) -> Tensor:
    """Rows whose last source is a noisy linear image of the first, off center."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(n, 15, generator=generator) @ torch.diag(torch.linspace(0.2, 2, 15))
    rows[:, DISTILLED] += rows[:, BASE] @ torch.randn(5, 7, generator=generator) + 4
    rows[:, BASE] -= 3
    return rows


def batches(rows: Tensor) -> list[MeasureBatch]:
    return [MeasureBatch(rows=part, sequence=torch.arange(len(part)) // 7) for part in rows.split(130)]


def least_squares(rows: Tensor, ridge: float) -> Tensor:
    """Ridge as plain least squares with one more row per coordinate, in normalized space."""
    x, y = rows[:, BASE].double() * SOURCES[0].scale, rows[:, DISTILLED].double() * SOURCES[2].scale
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    penalty = ridge * x.square().sum() / x.shape[1]
    more = penalty.sqrt() * torch.eye(x.shape[1]).double()
    inputs, targets = torch.cat([x, more]), torch.cat([y, torch.zeros(x.shape[1], y.shape[1]).double()])
    return torch.linalg.lstsq(inputs, targets).solution.T


@pytest.mark.parametrize("ridge", [1e-3, 0.5])
def test_it_is_ridge_regression_of_centered_rows(ridge: float) -> None:
    found = fit_linear_map(batches(some_rows()), SOURCES, ridge=ridge)
    torch.testing.assert_close(found, least_squares(some_rows(), ridge), rtol=1e-8, atol=1e-10)


def test_an_exact_map_is_found_and_the_other_way_is_the_other_pair() -> None:
    rows = some_rows()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1))).Q
    rows[:, 5:8] = rows[:, :3] @ turn.T
    pair = (Source(name="a", d_model=3), Source(name="b", d_model=3))
    two = torch.cat([rows[:, :3], rows[:, 5:8]], dim=1)
    found = fit_linear_map(batches(two), pair, ridge=1e-9)
    torch.testing.assert_close(found, turn.double(), rtol=0, atol=1e-5)
    back = fit_linear_map(batches(two), pair, pair=("b", "a"), ridge=1e-9)
    torch.testing.assert_close(back, turn.T.double(), rtol=0, atol=1e-5)


def test_scales_move_the_map_from_raw_to_normalized_space() -> None:
    raw = tuple(dataclasses.replace(source, scale=1.0) for source in SOURCES)
    found, plain = (fit_linear_map(batches(some_rows()), group) for group in (SOURCES, raw))
    torch.testing.assert_close(found, plain * (2.5 / 0.4))


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="ridge"):
        fit_linear_map(batches(some_rows()), SOURCES, ridge=0.0)
    with pytest.raises(ValueError, match="other"):
        fit_linear_map(batches(some_rows()), SOURCES, pair=("base", "other"))
    with pytest.raises(ValueError, match="4 rows, fewer than the width 5"):
        fit_linear_map(batches(some_rows(4)), SOURCES)
    with pytest.raises(ValueError, match=r"shape \(130, 12\)"):
        fit_linear_map(batches(some_rows()[:, :12]), SOURCES)
    broken = some_rows()
    broken[200, 2] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        fit_linear_map(batches(broken), SOURCES)
