"""What every check uses: the assertion, bitwise comparison, and latents in one form."""

from collections.abc import Mapping

import torch
from torch import Tensor

from crosscoders.kernels.sparse_latents import SparseLatents


def require(condition: bool, message: str) -> None:
    """Raise AssertionError with this message unless the condition holds."""
    if not condition:
        raise AssertionError(message)


def copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of each tensor."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def same_bits(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two sets of tensors are equal to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def dense(latents: Tensor | SparseLatents) -> Tensor:
    """Dense form of latents."""
    return latents if isinstance(latents, Tensor) else latents.to_dense()


def has_gradient(parameter: Tensor) -> bool:
    """Whether a gradient arrived that is not all zero; NaN counts."""
    return parameter.grad is not None and bool(parameter.grad.any())
