"""Reading a step without touching it: which latents fired, metrics for the log, signs of tampering."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from crosscoders.crosscoder import Crosscoder
from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.metrics import ExplainedVariance, dead_fraction, l0
from crosscoders.parallel import ALONE, Axis, Ranks
from crosscoders.sources import Source


@runtime_checkable
class Observable(Protocol):
    """What a step shows of its forward pass, in normalized space."""

    @property
    def inputs(self) -> Tensor:
        """Activations times scale."""
        ...

    @property
    def latents(self) -> Tensor | SparseLatents:
        """Dense or sparse latents."""
        ...

    @property
    def reconstruction(self) -> Tensor:
        """Reconstruction times scale."""
        ...


def fired_mask(latents: Tensor | SparseLatents) -> Tensor:
    """True for each latent that is non-zero for at least one token."""
    if isinstance(latents, SparseLatents):
        fired = torch.zeros(latents.n_latents, dtype=torch.bool, device=latents.indices.device)
        return fired.index_fill_(0, latents.indices[latents.values != 0], True)
    return (latents != 0).any(dim=0)


@torch.no_grad()
def silence_after(
    tokens_since_fired: Tensor, latents: Tensor | SparseLatents, *, n_tokens: int, ranks: Ranks = ALONE
) -> Tensor:
    """Every latent's silence after a batch: longer by its tokens, or ended for those that fire."""
    return (tokens_since_fired + n_tokens).masked_fill(ranks.data.any(fired_mask(latents)), 0)


def step_metrics(
    forward: Observable, *, sources: Sequence[Source], dead_mask: Tensor, ranks: Ranks = ALONE
) -> dict[str, float]:
    """L0, dead fraction and, where it is defined for this batch, EV per source in normalized space.

    Over the whole batch and all latents, also where the ranks have only some of them.
    """
    n_rows, n_latents = forward.inputs.shape[0], dead_mask.shape[0]
    per_row = _pooled(ranks.latents.sum(l0(forward.latents)), n_rows, axis=ranks.data)
    dead = _pooled(dead_fraction(dead_mask), n_latents, axis=ranks.latents)
    numbers = {"l0": float(per_row), "dead_fraction": float(dead)}
    explained = ExplainedVariance(sources)
    explained.update(forward.inputs, forward.reconstruction)
    if ranks.data.size > 1:
        explained = explained.pooled(lambda part: ranks.data.sum(part.to(forward.inputs.device)))
    try:
        return {**numbers, **{f"ev/{name}": value for name, value in explained.compute().items()}}
    except ValueError:
        # One row, or a source that is constant in this batch, has no EV; logging must not end the run.
        return numbers


def _pooled(mean: Tensor, n: int, *, axis: Axis) -> Tensor:
    """Mean over an axis of what this rank has as a mean over n."""
    if axis.size == 1:
        return mean
    total = mean * n if n else torch.zeros_like(mean)
    both = axis.sum(torch.stack([total, total.new_tensor(n)]))
    return both[0] / both[1]


def read_only(call: Callable[[], Any], crosscoder: Crosscoder, *, name: str, step: int) -> Any:
    """Call an observer in eval mode and without gradient.

    Raises:
        RuntimeError: It changed a parameter or buffer.
    """
    before = _versions(crosscoder)
    crosscoder.eval()
    with torch.no_grad():
        result = call()
    if _versions(crosscoder) != before:
        raise RuntimeError(
            f"Trainer: {name} changed a parameter or buffer at step {step}; it may only read. "
            "To change training, override a template method of Trainer."
        )
    return result


def _versions(crosscoder: Crosscoder) -> list[tuple[int, int]]:
    """Changes whenever a parameter or buffer is written in place or given other storage."""
    tensors = [*crosscoder.parameters(), *crosscoder.buffers()]
    return [(tensor._version, tensor.data_ptr()) for tensor in tensors]
