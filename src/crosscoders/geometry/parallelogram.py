"""The parallelogram loss: how far two word pairs of one relation are from spanning a parallelogram.

Two pairs (a, b) and (c, d) are read as the points E0 = a, E1 = b, E2 = c, E3 = d, and

    loss = ||E0 + E3 - E1 - E2||^2 / scale = ||(d - c) - (b - a)||^2 / scale,

zero if the step from input to output is the same in both (Baek et al. 2025, Harmonic Loss). Four scales are
in use; for independent standard Gaussian points in d dimensions the expected loss is

    all     mean squared norm of a whole vocabulary's points       4
    task    mean squared norm of the task's own points             4
    dp      mean squared entry of the quadruple                    4 d
    dp_0m   mean squared entry of the centered quadruple           16 d / 3

A quadruple whose loss is exactly zero is *trivial*: its two pairs are the same points, or each of them is one
point twice (words that end in the same token). One whose scale is zero is *degenerate*. Neither says anything
of a relation: both are dropped and counted.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._typing import typed

Scale = Literal["all", "task", "dp", "dp_0m"]
SCALES: tuple[Scale, ...] = ("all", "task", "dp", "dp_0m")


@dataclass(frozen=True, kw_only=True)
class MeanLoss:
    """Mean parallelogram loss of some quadruples, and how many of them say nothing.

    Args:
        loss: Mean over the quadruples kept; NaN if none is.
        n_kept: Quadruples averaged over.
        n_trivial: Dropped because their loss is exactly zero.
        n_degenerate: Dropped because their scale is zero.
    """

    loss: float
    n_kept: int
    n_trivial: int
    n_degenerate: int


@typed
def draw_quadruples(
    n_pairs: int, *, n_quadruples: int = 10_000, generator: torch.Generator
) -> Int[Tensor, "_n 2"]:
    """Draw two different pairs for each quadruple, with replacement between quadruples.

    `first ~ U{0..n-1}`, `second = (first + U{1..n-1}) mod n`.

    Args:
        n_pairs: Pairs to draw from.
        n_quadruples: How many quadruples.
        generator: Randomness.

    Returns:
        For each quadruple the numbers of its two pairs.

    Raises:
        ValueError: Fewer than two pairs, or no quadruples.
    """
    if n_pairs < 2 or n_quadruples < 1:
        raise ValueError(
            f"draw_quadruples: needs at least 2 pairs and 1 quadruple, got {n_pairs} and {n_quadruples}."
        )
    first = torch.randint(n_pairs, (n_quadruples,), generator=generator)
    shift = torch.randint(1, n_pairs, (n_quadruples,), generator=generator)
    return torch.stack([first, (first + shift) % n_pairs], dim=1)


@typed
def quadruple_points(
    inputs: Float[Tensor, "_pair _c"], outputs: Float[Tensor, "_pair _c"], *, quadruples: Int[Tensor, "_n 2"]
) -> Float[Tensor, "_n 4 _c"]:
    """Points E0 = input, E1 = output of the first pair, E2 = input, E3 = output of the second.

    Args:
        inputs: Point of each pair's input.
        outputs: Point of each pair's output.
        quadruples: Result of `draw_quadruples`.

    Returns:
        The four points of each quadruple.
    """
    first, second = quadruples.unbind(dim=1)
    return torch.stack([inputs[first], outputs[first], inputs[second], outputs[second]], dim=1)


@typed
def mean_squared_norm(points: Float[Tensor, "*_any _c"]) -> float:
    """Mean of ||x||^2, the reference of the scales "all" (over a vocabulary) and "task" (over its points).

    Args:
        points: Points in the space in which the loss is taken.

    Returns:
        The mean over points, in float64.
    """
    return float(points.double().square().sum(dim=-1).mean())


@typed
def parallelogram_loss(
    quadruples: Float[Tensor, "_n 4 _c"], *, scale: Scale, reference: float | None = None
) -> Float[Tensor, " _n"]:
    """Parallelogram loss of each quadruple (formula and scales: see the module).

    Args:
        quadruples: Points E0..E3 of each, as `quadruple_points` gives them.
        scale: What the squared distance is divided by.
        reference: `mean_squared_norm` of the vocabulary for "all" or of the task's points for "task"; None
            for "dp" and "dp_0m", whose scale is the quadruple's own.

    Returns:
        float64 losses; exactly zero where trivial, NaN where degenerate.

    Raises:
        ValueError: A reference that the scale needs is missing, not needed, or not positive; points that
            are not finite.
    """
    check_reference(scale, reference)
    if not bool(quadruples.isfinite().all()):
        raise ValueError("parallelogram_loss: the points hold NaN or infinity, so their loss is undefined.")
    e = quadruples.double()
    distance = ((e[:, 3] - e[:, 2]) - (e[:, 1] - e[:, 0])).square().sum(dim=-1)
    if reference is not None:
        return distance / reference
    if scale == "dp":
        return distance / e.square().mean(dim=(1, 2))
    # Contrasts, whose squares add up to four times the centered ones, are exactly zero for four equal points.
    across = ((e[:, 0] - e[:, 2]) + (e[:, 1] - e[:, 3])).square().sum(dim=-1)
    along = ((e[:, 0] - e[:, 1]) + (e[:, 2] - e[:, 3])).square().sum(dim=-1)
    return distance * 16 * e.shape[2] / (distance + across + along)


@typed
def mean_loss(losses: Float[Tensor, " _n"]) -> MeanLoss:
    """Drop trivial and degenerate quadruples, count them, and average the rest.

    Args:
        losses: Result of `parallelogram_loss`.

    Returns:
        The mean and the counts.
    """
    degenerate, trivial = losses.isnan(), losses == 0
    kept = losses[~(degenerate | trivial)]
    return MeanLoss(
        loss=float(kept.double().mean()),
        n_kept=kept.numel(),
        n_trivial=int(trivial.sum()),
        n_degenerate=int(degenerate.sum()),
    )


@typed
def expected_gaussian_loss(scale: Scale, *, n_dimensions: int) -> float:
    """Expected loss of independent standard Gaussian points: what a relation without structure would give.

    4 for "all" and "task". The four points' squared norms add up to a quarter of those of their sum and
    three contrasts, all alike in distribution, one of which is the loss's: its expected share is 1/4 of them,
    1/3 after centering, so 4 d for "dp" and 16 d / 3 for "dp_0m".

    Args:
        scale: Scale of the loss.
        n_dimensions: Dimensions d of the points.
    """
    return {"all": 4.0, "task": 4.0, "dp": 4.0 * n_dimensions, "dp_0m": 16.0 * n_dimensions / 3.0}[scale]


def check_reference(scale: Scale, reference: object) -> None:
    """Raise ValueError unless a reference is there exactly where the scale needs one, and positive."""
    needs = scale in ("all", "task")
    if needs != (reference is not None):
        raise ValueError(
            f"parallelogram_loss: scale {scale!r} {'needs' if needs else 'takes no'} reference (the mean "
            f"squared norm of the vocabulary for 'all', of the task's points for 'task'), got {reference}."
        )
    if isinstance(reference, float) and not 0 < reference < float("inf"):
        raise ValueError(
            f"parallelogram_loss: the reference of scale {scale!r} must be positive and finite, "
            f"got {reference}; are all points zero or not finite?"
        )
