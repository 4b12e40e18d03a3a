"""Holding weights to a structure: hooks on the gradients that reach them, and a check of stored ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from crosscoders.errors import CheckpointError
from crosscoders.sources import Source, scale_vector
from crosscoders.structures.base import Matrix, Structure

# How far folding in bfloat16 may move one entry from its twin: the scale, the product and the stored weight
# are each rounded by 2^-9, in both. A file does not say in which dtype its weights were folded.
_FOLDED_RTOL = 2e-2


@final
class Hold:
    """The hook of one matrix, which autograd calls with its gradient.

    Args:
        structure: What the matrix is held to.
        matrix: Which one it is.
        sources: Sources in the order of their columns.
    """

    def __init__(self, structure: Structure, *, matrix: Matrix, sources: Sequence[Source]) -> None:
        self._structure = structure
        self._matrix: Matrix = matrix
        self._sources = tuple(sources)

    def __call__(self, grad: Tensor) -> Tensor:
        """The gradient of the free weights."""
        return self._structure.constrain_gradient(grad, matrix=self._matrix, sources=self._sources)


def hold(structure: Structure, parameter: Tensor, *, matrix: Matrix, sources: Sequence[Source]) -> None:
    """Constrain the gradients of a parameter from now on; once is enough.

    Hooks do not follow a parameter that is copied or replaced, so this is called again where that may have
    happened; a parameter that is frozen gets its hook when it is thawed.

    Args:
        structure: What the parameter is held to.
        parameter: The parameter.
        matrix: Which matrix it is.
        sources: Sources in the order of their columns.
    """
    hooks = (parameter._backward_hooks or {}).values()
    if parameter.requires_grad and not any(isinstance(hook, Hold) for hook in hooks):
        parameter.register_hook(Hold(structure, matrix=matrix, sources=sources))


def check_held(
    path: Path | str,
    structure: Structure | None,
    tensors: Mapping[str, Tensor],
    *,
    sources: Sequence[Source],
    is_folded: bool,
) -> None:
    """Check that stored weights fulfil a structure: exactly, or up to rounding where scales are folded in.

    Args:
        path: Where they came from, for the message.
        structure: What their config states, if anything.
        tensors: Weights by state-dict key.
        sources: Sources in the order of their columns.
        is_folded: Whether the weights contain the scales.

    Raises:
        CheckpointError: A latent breaks it.
    """
    if structure is None:
        return
    scale = scale_vector(sources, dtype=torch.float64)
    matrices: tuple[tuple[Matrix, Tensor], ...] = (("W_enc", 1 / scale), ("W_dec", scale))
    for matrix, factor in matrices:
        rows = tensors[matrix].double() * factor if is_folded else tensors[matrix]
        rtol = _FOLDED_RTOL if is_folded else 0.0
        latent = structure.broken_latent(rows, matrix=matrix, sources=sources, rtol=rtol)
        if latent is not None:
            raise CheckpointError(
                f"{path}: the config states {structure}, but {matrix} of latent {latent} breaks it; the "
                "weights belong to another crosscoder or were changed after training."
            )
