"""The runtime shape checks keep what they decorate working."""

import jaxtyping
import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from crosscoders._typing import typed


@typed
def double(x: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
    return 2 * x


@typed
@torch.no_grad()
def quiet_double(x: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
    return 2 * x


@pytest.mark.skipif(jaxtyping.config.jaxtyping_disable, reason="JAXTYPING_DISABLE turns the checks off")
def test_wrong_rank_and_dtype_raise() -> None:
    for bad in (torch.ones(3), torch.ones(2, 2, dtype=torch.int64)):
        with pytest.raises(TypeCheckError):
            double(bad)
        with pytest.raises(TypeCheckError):
            quiet_double(bad)


def test_other_decorators_stay() -> None:
    parameter = torch.ones(2, 2, requires_grad=True)
    assert not quiet_double(parameter).requires_grad
    assert double(parameter).requires_grad


@pytest.mark.slow
def test_checks_vanish_under_compile() -> None:
    compiled = torch.compile(double, backend="eager", fullgraph=True)
    assert torch.equal(compiled(torch.ones(2, 2)), torch.full((2, 2), 2.0))
