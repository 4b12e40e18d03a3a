"""The runtime shape checks keep what they decorate working."""

import traceback
from typing import Any

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


@typed
def visit(place: str, *, token: bool | str | None = None) -> None:
    if place == "nested":
        visit(3, token=token)  # pyright: ignore[reportArgumentType]


@pytest.mark.skipif(jaxtyping.config.jaxtyping_disable, reason="JAXTYPING_DISABLE turns the checks off")
@pytest.mark.parametrize("place", [3, "nested"])
@pytest.mark.parametrize("token", ["hf_" + "a1" * 17, b"hf_" + b"a1" * 17])
def test_a_token_is_in_no_message(place: Any, token: Any) -> None:
    with pytest.raises(TypeCheckError, match="place") as caught:
        visit(place, token=token)
    said = "".join(traceback.format_exception(caught.value))
    assert "a1a1" not in said
    with pytest.raises(TypeCheckError, match="True"):
        visit(3, token=True)  # pyright: ignore[reportArgumentType]
