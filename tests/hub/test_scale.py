"""The estimated scale against a sum by hand."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from crosscoders.buffer import ActivationBuffer
from crosscoders.hub import estimate_scale
from crosscoders.sources import Source
from tests.hub.toys import SOURCES, rows


def by_hand(x: Tensor) -> dict[str, float]:
    """sqrt(d) over the mean norm, in Python floats."""
    means = {}
    for name, start, stop in (("base", 0, 6), ("distilled", 6, 10)):
        norms = [math.sqrt(sum(v * v for v in row[start:stop])) for row in x.double().tolist()]
        means[name] = math.sqrt(stop - start) / (sum(norms) / len(norms))
    return means


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_is_sqrt_d_over_the_mean_norm(dtype: torch.dtype) -> None:
    x = rows(37).to(dtype)
    assert estimate_scale(x, sources=SOURCES) == pytest.approx(by_hand(x), rel=1e-12)


def test_batches_of_any_sizes_and_a_generator_give_the_same() -> None:
    x = rows(37)

    def batches() -> Iterator[Tensor]:
        yield from (x[:1], x[1:30], x[30:30], x[30:])

    assert estimate_scale(batches(), sources=SOURCES) == pytest.approx(estimate_scale(x, sources=SOURCES))


def test_it_brings_the_mean_norm_to_sqrt_d() -> None:
    x = rows(50)
    scale = estimate_scale(x, sources=SOURCES)
    assert float((scale["base"] * x[:, :6]).norm(dim=1).mean()) == pytest.approx(math.sqrt(6))


def test_sums_do_not_lose_small_rows() -> None:
    big, small = torch.full((1, 1), 2.0**24), torch.ones(4096, 1)
    mean = (2.0**24 + 4096) / 4097
    assert estimate_scale([big, small], sources=[Source(name="a", d_model=1)]) == {"a": 1 / mean}


class _Rows:
    """A harvester of ready rows."""

    sources = SOURCES

    def harvest(self, tokens: Tensor) -> Tensor:
        return rows(tokens.numel()).reshape(*tokens.shape, -1)


def test_a_buffer_gives_its_own_estimate() -> None:
    buffer = ActivationBuffer(
        _Rows(),
        [torch.zeros(4, 8, dtype=torch.long)],
        max_bytes=1 << 20,
        batch_tokens=8,
        generator=torch.Generator().manual_seed(0),
    )
    assert estimate_scale(buffer) == {source.name: source.scale for source in buffer.sources}
    with pytest.raises(ValueError, match="leave sources out"):
        estimate_scale(buffer, sources=SOURCES)


def test_what_gives_no_scale_raises() -> None:
    with pytest.raises(ValueError, match="sources="):
        estimate_scale(rows())
    with pytest.raises(ValueError, match="at least one row"):
        estimate_scale([], sources=SOURCES)
    with pytest.raises(ValueError, match="finite and positive"):
        estimate_scale(torch.zeros(3, 10), sources=SOURCES)
    with pytest.raises(ValueError, match="finite and positive"):
        estimate_scale(torch.full((3, 10), torch.nan), sources=SOURCES)
    with pytest.raises(ValueError, match=r"\[batch, 10\]"):
        estimate_scale([torch.ones(3, 9)], sources=SOURCES)
