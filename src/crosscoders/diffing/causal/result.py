"""What the causal check found: KL and share closed with intervals, beside anchors and controls."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.bootstrap import Estimate, percentile_interval

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class PatchScore:
    """What one patch does to the second model's next-token distribution.

    Args:
        kl: KL(second model || patched) in nats per token.
        share_closed: (KL without patch - KL) / KL without patch: 1 is the second model itself, 0 no better
            than the first model's activation, negative worse. NaN where the models do not differ.
        relative_size: Mean norm of what is added, over the mean norm of the true difference, at the patched
            tokens of all rows that were run; NaN where the models do not differ.
    """

    kl: Estimate
    share_closed: Estimate
    relative_size: float


@dataclass(frozen=True, kw_only=True)
class ControlScore:
    """Random latents in place of a set's, one entry per draw.

    Args:
        share_closed: Share of the KL that each draw closes.
        relative_size: Mean norm of what each draw adds, over the mean norm of the true difference.
        unscalable: Of the tokens that the set edits, the share at which a draw had nothing to scale to the
            set's size and left the token alone; mean over the draws. NaN where sizes were left as they are.
        advantage: Share closed by the set less the draws' mean, with an interval over sequences; it does not
            cover the choice of the draws, which `spread` tells.
    """

    share_closed: tuple[float, ...]
    relative_size: tuple[float, ...]
    unscalable: float
    advantage: Estimate

    @property
    def mean(self) -> float:
        """Mean share over the draws."""
        return math.fsum(self.share_closed) / len(self.share_closed)

    @property
    def spread(self) -> float:
        """Standard deviation of the share over the draws; NaN for one draw."""
        if len(self.share_closed) < 2:
            return math.nan
        squares = math.fsum((share - self.mean) ** 2 for share in self.share_closed)
        return math.sqrt(squares / (len(self.share_closed) - 1))


@dataclass(frozen=True, kw_only=True)
class SetScore:
    """A set of latents beside its controls.

    Args:
        latents: The set.
        score: Its own patch.
        controls: By kind: "count", "norm", "identity"; empty without draws.
    """

    latents: tuple[int, ...]
    score: PatchScore
    controls: Mapping[str, ControlScore]


@dataclass(frozen=True, kw_only=True)
class CausalCheck:
    """Shares of the KL between two models that sets of latents close (`causal_check`).

    Args:
        pair: Source that is patched from, and source whose model runs and is aimed at.
        n_tokens: Tokens at which the KL was read.
        n_sequences: Sequences that they come from; intervals resample these.
        anchors: Scores to compare with, by name.
        sets: Scores by the name of the set.
    """

    pair: tuple[str, str]
    n_tokens: int
    n_sequences: int
    anchors: Mapping[str, PatchScore]
    sets: Mapping[str, SetScore]

    @typed
    def lines(self) -> list[str]:
        """The result as lines of text."""
        start, end = self.pair
        first = (
            f"{start} patched toward {end}, {self.n_tokens} tokens of {self.n_sequences} sequences: "
            f"KL({end} || patched) in nats, share of it closed"
        )
        lines = [first, *(_anchor_line(name, score) for name, score in self.anchors.items())]
        for name, found in self.sets.items():
            n = len(found.latents)
            lines.append(_anchor_line(f"{name} ({n} latent{'s' if n > 1 else ''})", found.score))
            lines += [_control_line(kind, control) for kind, control in found.controls.items()]
        return lines

    @typed
    def summary(self) -> str:
        """`lines` in one text."""
        return "\n".join(self.lines())


def _anchor_line(name: str, score: PatchScore) -> str:
    return (
        f"  {name}: KL {score.kl.mean:.4g} {_interval(score.kl, '.4g')}, closed "
        f"{score.share_closed.mean:.1%} {_interval(score.share_closed, '.1%')}, "
        f"size {score.relative_size:.3g} of the true difference"
    )


def _control_line(kind: str, control: ControlScore) -> str:
    n = len(control.share_closed)
    text = (
        f"    control by {kind}, {n} draw{'s' if n > 1 else ''}: closed {control.mean:.1%} "
        f"(sd {control.spread:.1%}), set less control {control.advantage.mean:.1%} "
        f"{_interval(control.advantage, '.1%')}"
    )
    return (
        text if math.isnan(control.unscalable) else f"{text}, {control.unscalable:.0%} of tokens unscalable"
    )


def _interval(estimate: Estimate, form: str) -> str:
    return f"[{estimate.low:{form}}, {estimate.high:{form}}]"


@typed
def clustered_ratio(
    numerators: Float[Tensor, " _sequences"],
    denominators: Float[Tensor, " _sequences"],
    *,
    counts: Float[Tensor, "_bootstrap _sequences"],
) -> Estimate:
    """Ratio of two sums over sequences, with a percentile bootstrap that resamples the sequences.

    ratio* = sum_g c_g numerator_g / sum_g c_g denominator_g, with c_g how often g is drawn.

    Args:
        numerators: Sum within each sequence.
        denominators: The same of what it is divided by.
        counts: Resamples from `crosscoders.bootstrap.bootstrap_counts`; the same for all that is compared.

    Returns:
        The ratio; NaN where the denominators sum to 0, and an interval of NaN for fewer than two sequences.
    """
    ratio = float(_ratio(numerators.sum(), denominators.sum()))
    n = len(numerators)
    if n < 2:
        return Estimate(mean=ratio, low=math.nan, high=math.nan, n=n)
    resampled = _ratio(torch.mv(counts, numerators), torch.mv(counts, denominators))
    low, high = percentile_interval(resampled, confidence=CONFIDENCE)
    return Estimate(mean=ratio, low=low, high=high, n=n)


def _ratio(numerators: Tensor, denominators: Tensor) -> Tensor:
    return torch.where(denominators == 0, torch.nan, numerators / denominators)
