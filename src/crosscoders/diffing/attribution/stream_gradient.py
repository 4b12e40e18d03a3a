"""Gradient of a function of the logits with respect to the residual stream at a hook."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from crosscoders._typing import typed
from crosscoders.models.base import LanguageModel
from crosscoders.models.hooks import evaluation_mode

Method = Literal["gradient", "integrated"]


@typed
def path_points(method: Method, *, n_steps: int) -> list[tuple[float, float]]:
    """Where on the way from 0 (set taken out) to 1 (clean) gradients are read, and their weights.

    "gradient" reads once, at the clean end. "integrated" takes the nodes of Gauss-Legendre quadrature, which
    is exact for gradients that are polynomials of degree 2 n_steps - 1 along the way.

    Args:
        method: One of the two.
        n_steps: Number of nodes; ignored by "gradient".

    Returns:
        (place, weight) of each node; the weights add up to 1.

    Raises:
        ValueError: `n_steps` below 1.
    """
    if n_steps < 1:
        raise ValueError(f"path_points: n_steps must be at least 1, got {n_steps}.")
    if method == "gradient":
        return [(1.0, 1.0)]
    nodes, weights = np.polynomial.legendre.leggauss(n_steps)
    return [((float(x) + 1) / 2, float(w) / 2) for x, w in zip(nodes, weights, strict=True)]


@typed
def stream_gradient(
    model: LanguageModel,
    tokens: Int[Tensor, "batch pos"],
    *,
    hook_name: str,
    metric: Callable[[Tensor], Tensor],
    removed: Float[Tensor, "batch pos d_model"],
    points: Sequence[tuple[float, float]],
) -> Float[Tensor, "batch pos d_model"]:
    """Mean gradient of a metric along the way on which something comes back into the stream.

    G = sum_k w_k grad metric(h - (1 - a_k) removed), h the residual stream at the hook. No parameter gets a
    gradient, and the model's flags stay as they were.

    Args:
        model: The whole model.
        tokens: Token ids, padded on the right if at all.
        hook_name: Residual-stream hook.
        metric: Gets the logits [batch pos vocab] and returns one number per row, which depends on that
            row's logits only.
        removed: What is missing at the start of the way.
        points: (a_k, w_k), from `path_points`.

    Returns:
        The gradient of each row's metric at each position, summed over the points in float32 or better.

    Raises:
        ValueError: The model is truncated, or the metric is not one finite number per row that depends on
            the logits.
    """
    model.require_whole("a gradient of the logits")
    total = torch.zeros(())
    for place, weight in points:
        gradient = _gradient_at(model, tokens, hook_name, metric, (1 - place) * removed)
        gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        total = total.to(gradient.device) + weight * gradient
    return total


def _gradient_at(
    model: LanguageModel,
    tokens: Tensor,
    hook_name: str,
    metric: Callable[[Tensor], Tensor],
    removed: Tensor,
) -> Tensor:
    streams: list[Tensor] = []

    def put(stream: Tensor) -> Tensor:
        streams.append((stream - removed.to(stream)).detach().requires_grad_())
        return streams[-1]

    lm = model.causal_lm
    with frozen_parameters(lm), evaluation_mode(lm), model.edit(hook_name, put), torch.enable_grad():
        logits = lm(input_ids=tokens.to(model.device), use_cache=False, return_dict=True).logits
        values = checked_metric(metric, logits)
        if not values.requires_grad:
            raise ValueError(
                f"the metric has no gradient: it does not depend on the logits of {model.name!r}, or was "
                "computed without gradient; compute it from the logits it gets, with torch."
            )
        (gradient,) = torch.autograd.grad(values.sum(), streams)
    return gradient


def checked_metric(metric: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """The metric's values, one finite number per row.

    Args:
        metric: Function of logits [batch pos vocab].
        logits: The logits.

    Raises:
        ValueError: It returns another shape or dtype, or NaN or infinity.
    """
    values = metric(logits)
    if not isinstance(values, Tensor) or values.shape != logits.shape[:1] or not values.is_floating_point():
        got = (tuple(values.shape), values.dtype) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"the metric must return one floating-point number per row, shape {(len(logits),)}, got {got}."
        )
    if not bool(values.isfinite().all()):
        row = int((~values.isfinite()).nonzero()[0])
        raise ValueError(f"the metric is {float(values[row])} for row {row}; expected a finite value.")
    return values


@contextmanager
def frozen_parameters(module: nn.Module) -> Iterator[None]:
    """Let no parameter ask for a gradient while the block runs, so that only the stream's is kept in memory.

    Args:
        module: The model.
    """
    asking = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
