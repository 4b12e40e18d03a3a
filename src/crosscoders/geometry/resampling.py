"""What the mean parallelogram loss would be without the relation, and how far other word pairs would move it.

The null shuffles the outputs among the pairs of a task: the same words, the same quadruples, no relation. The
interval draws *pairs* with replacement, for pairs are what was sampled; quadruples share pairs and are not
independent.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.geometry.parallelogram import Scale, check_reference

_CHUNK_ENTRIES = 200_000  # float64 entries of an intermediate tensor; 3x slower at 2M, beyond the cache
_TIE = 1e-12  # sums in another order differ by less than this share


@dataclass(frozen=True, kw_only=True)
class PermutationNull:
    """The mean loss beside the ones that shuffled outputs give.

    Args:
        observed: Mean loss of the pairs as they are.
        losses: Mean loss under each permutation; NaN where it leaves no quadruple.
        p_value: (1 + number of losses <= observed) / (1 + number of permutations); NaN losses count.
        dropped_share: Mean share of quadruples dropped under a permutation, as trivial or degenerate.
    """

    observed: float
    losses: Float[Tensor, " _permutation"]
    p_value: float
    dropped_share: float

    @property
    def mean(self) -> float:
        """Mean loss under the null."""
        return float(self.losses.nanmean())


@typed
def draw_permutations(
    n_pairs: int, *, n_permutations: int, generator: torch.Generator
) -> Int[Tensor, "_permutation _pair"]:
    """Random orders of the outputs of a task's pairs.

    Args:
        n_pairs: Pairs of the task.
        n_permutations: How many orders.
        generator: Randomness.

    Returns:
        One permutation of 0..n_pairs-1 per row.
    """
    return torch.stack([torch.randperm(n_pairs, generator=generator) for _ in range(n_permutations)])


@typed
def draw_resamples(
    n_pairs: int, *, n_resamples: int, generator: torch.Generator
) -> Int[Tensor, "_resample _pair"]:
    """Bootstrap samples of a task's pairs, as many pairs in each as the task has.

    Args:
        n_pairs: Pairs of the task.
        n_resamples: How many samples.
        generator: Randomness.

    Returns:
        The pairs of each sample, drawn with replacement.
    """
    return torch.randint(n_pairs, (n_resamples, n_pairs), generator=generator)


@typed
def permutation_null(
    inputs: Float[Tensor, "_pair _c"],
    outputs: Float[Tensor, "_pair _c"],
    *,
    quadruples: Int[Tensor, "_n 2"],
    permutations: Int[Tensor, "_permutation _pair"],
    scale: Scale,
    reference: float | None = None,
) -> PermutationNull:
    """Mean loss of the pairs, and of the same inputs with the outputs in other orders.

    The quadruples, the scale and the dropping of trivial and degenerate ones are the same in both, so under
    the null the observed value is one of 1 + n exchangeable ones and its rank gives the p-value. Small
    p-values say that the outputs fit their own inputs better than they fit others.

    Args:
        inputs: Point of each pair's input.
        outputs: Point of each pair's output.
        quadruples: Result of `draw_quadruples`.
        permutations: Result of `draw_permutations`.
        scale: Scale of the loss.
        reference: `mean_squared_norm` of the vocabulary for "all"; "task" takes that of the pairs' own
            points, each pair counting alike.

    Returns:
        Observed value, null and p-value.

    Raises:
        ValueError: A missing or superfluous reference, or pairs that leave no quadruple.
    """
    points, unique = _Points(inputs, outputs, scale=scale, reference=reference), _Unique(quadruples)
    identity = torch.arange(inputs.shape[0], device=permutations.device)[None]
    losses, dropped = _mean_losses(points, unique, order_out=torch.cat([identity, permutations]))
    observed, null = float(losses[0]), losses[1:]
    if math.isnan(observed):
        raise ValueError(
            f"permutation_null: all {quadruples.shape[0]} quadruples of {inputs.shape[0]} pairs are trivial "
            "or degenerate; do inputs and outputs end in the same tokens?"
        )
    n_below = int((~(null > observed * (1 + _TIE))).sum())
    return PermutationNull(
        observed=observed,
        losses=null,
        p_value=(1 + n_below) / (1 + len(null)),
        dropped_share=float(dropped[1:].mean()),
    )


@typed
def resampled_losses(
    inputs: Float[Tensor, "_pair _c"],
    outputs: Float[Tensor, "_pair _c"],
    *,
    quadruples: Int[Tensor, "_n 2"],
    resamples: Int[Tensor, "_resample _pair"],
    scale: Scale,
    reference: float | None = None,
) -> Float[Tensor, " _resample"]:
    """Mean loss of each bootstrap sample of pairs.

    A sample's quadruples are those of the given places in it; one that meets a pair with itself has no loss
    and is dropped as trivial. Give two models the same samples and the difference of the results is that of
    the paired bootstrap.

    Args:
        inputs: Point of each pair's input.
        outputs: Point of each pair's output.
        quadruples: Result of `draw_quadruples`.
        resamples: Result of `draw_resamples`.
        scale: Scale of the loss; "task" is taken anew over each sample's pairs.
        reference: `mean_squared_norm` of the vocabulary for "all".

    Returns:
        float64; NaN where a sample leaves no quadruple.

    Raises:
        ValueError: A missing or superfluous reference.
    """
    points, unique = _Points(inputs, outputs, scale=scale, reference=reference), _Unique(quadruples)
    return _mean_losses(points, unique, order_in=resamples, order_out=resamples)[0]


@typed
def two_sided_p_value(differences: Float[Tensor, " _resample"]) -> float:
    """Bootstrap p-value of "no difference": twice the share of samples on the rarer side of zero.

    Args:
        differences: One difference per sample; NaN is left out.

    Returns:
        2 * (1 + number on the rarer side, zeros counted) / (1 + number of samples), at most 1.
    """
    known = differences[~differences.isnan()]
    rarer = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return min(1.0, 2 * (1 + rarer) / (1 + known.numel()))


class _Points:
    """Points of pairs, and what a loss divides by."""

    def __init__(self, inputs: Tensor, outputs: Tensor, *, scale: Scale, reference: float | None) -> None:
        self.inputs, self.outputs = inputs.double(), outputs.double()
        self.norms_in, self.norms_out = (x.square().sum(dim=-1) for x in (self.inputs, self.outputs))
        if scale == "task":
            reference = _own_reference(self.norms_in, self.norms_out, given=reference)
        check_reference(scale, reference)
        self.scale, self.reference = scale, reference

    def losses(self, order_in: Tensor, order_out: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Losses of quadruples (column) in several orders of the points (row)."""
        a, b = self.inputs[order_in], self.outputs[order_out]
        step = b - a
        distance = (step[:, second] - step[:, first]).square().sum(dim=-1)
        if self.scale == "all":
            assert self.reference is not None  # check_reference
            return distance / self.reference
        norms = self.norms_in[order_in] + self.norms_out[order_out]
        if self.scale == "task":
            return distance / (norms.mean(dim=1, keepdim=True) / 2)
        n_entries = 4 * a.shape[-1]
        if self.scale == "dp":
            return distance * n_entries / (norms[:, first] + norms[:, second])
        total, size = b + a, step.square().sum(dim=-1)
        across = (total[:, second] - total[:, first]).square().sum(dim=-1)
        along = 2 * (size[:, first] + size[:, second]) - distance
        return distance * 4 * n_entries / (distance + across + along)


def _own_reference(norms_in: Tensor, norms_out: Tensor, *, given: float | None) -> float:
    if given is not None:
        raise ValueError(
            f"scale 'task' takes its reference from the pairs' own points; got {given}, not None."
        )
    return float((norms_in + norms_out).mean() / 2)


class _Unique:
    """Quadruples without repetition, (i, j) and (j, i) being one, and how often each was drawn."""

    def __init__(self, quadruples: Tensor) -> None:
        ordered = quadruples.sort(dim=1).values
        unique, counts = torch.unique(ordered, dim=0, return_counts=True)
        self.first, self.second = unique.unbind(dim=1)
        self.counts = counts.double()


def _mean_losses(
    points: _Points, unique: _Unique, *, order_out: Tensor, order_in: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """For each order the mean over its kept quadruples, and the share of quadruples that it drops."""
    rows = max(1, _CHUNK_ENTRIES // (len(unique.counts) * points.inputs.shape[1]))
    as_given = torch.arange(order_out.shape[1], device=order_out.device).expand(order_out.shape)
    means, dropped = [], []
    for out, inn in zip(order_out.split(rows), (as_given if order_in is None else order_in).split(rows)):
        losses = points.losses(inn, out, unique.first, unique.second)
        kept = unique.counts * ((losses != 0) & ~losses.isnan())
        # A degenerate loss is 0/0: its weight of zero would not silence the NaN.
        total = torch.where(kept > 0, losses * kept, 0.0).sum(dim=1)
        means.append(total / kept.sum(dim=1))
        dropped.append(1 - kept.sum(dim=1) / unique.counts.sum())
    return torch.cat(means), torch.cat(dropped)
