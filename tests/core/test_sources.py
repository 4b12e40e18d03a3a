"""Sources, columns and scales."""

import math

import pytest
import torch

from crosscoders.sources import (
    Source,
    check_sources,
    column_slices,
    scale_from_mean_norm,
    scale_vector,
    source_index,
    width,
)

SOURCES = (Source(name="a", d_model=2, scale=0.5), Source(name="b", d_model=3, scale=2.0))


def test_slices_tile_the_width_in_order() -> None:
    columns = torch.arange(width(SOURCES))
    assert torch.equal(torch.cat([columns[s] for s in column_slices(SOURCES).values()]), columns)


def test_scale_vector_repeats_each_scale() -> None:
    assert scale_vector(SOURCES).tolist() == [0.5, 0.5, 2.0, 2.0, 2.0]


def test_scale_brings_the_mean_norm_to_sqrt_d() -> None:
    x = 7.0 * torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    scale = scale_from_mean_norm(x.norm(dim=1).mean().item(), 9)
    assert math.isclose((scale * x).norm(dim=1).mean().item(), 3.0, rel_tol=1e-5)


@pytest.mark.parametrize("mean_norm", [0.0, -1.0, math.nan, math.inf])
def test_unusable_norms_raise(mean_norm: float) -> None:
    with pytest.raises(ValueError, match="finite and positive"):
        scale_from_mean_norm(mean_norm, 4)


def test_unknown_source_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"'c'.*\['a', 'b'\]"):
        source_index(SOURCES, "c")


def test_bad_sources_raise() -> None:
    with pytest.raises(ValueError, match="unique"):
        check_sources((SOURCES[0], SOURCES[0]))
    with pytest.raises(ValueError, match="at least one"):
        check_sources(())
    with pytest.raises(ValueError, match="d_model"):
        Source(name="a", d_model=0)
    with pytest.raises(ValueError, match="scale"):
        Source(name="a", d_model=1, scale=0.0)


def test_dict_round_trip_is_strict() -> None:
    assert Source.from_dict(SOURCES[0].to_dict()) == SOURCES[0]
    with pytest.raises(ValueError, match="hook"):
        Source.from_dict({"name": "a", "d_model": 2, "hook": "x"})
