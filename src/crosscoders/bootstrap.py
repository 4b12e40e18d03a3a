"""Means with percentile bootstrap intervals that resample single values or whole clusters."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._typing import typed

_Z95 = 1.959963984540054  # 97.5% quantile of the normal distribution


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its interval.

    Args:
        mean: Mean of the defined values; NaN if there are none.
        low: Lower end of the interval; NaN where it is undefined.
        high: Upper end.
        n: What was resampled: values that are defined, or clusters.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def is_above_zero(self) -> bool:
        """Whether the whole interval lies above 0; False if it is undefined."""
        return self.low > 0

    @property
    def is_below_zero(self) -> bool:
        """Whether the whole interval lies below 0; False if it is undefined."""
        return self.high < 0


@typed
def bootstrap_counts(
    n_prompts: int, *, n_bootstrap: int, generator: torch.Generator
) -> Float[Tensor, "_bootstrap _prompts"]:
    """How often each prompt is drawn in each resample of the prompts with replacement.

    One draw serves every measure and both sides of a difference, which keeps pairs together.

    Args:
        n_prompts: Number of prompts.
        n_bootstrap: Number of resamples.
        generator: Source of randomness, on the CPU.

    Raises:
        ValueError: Either number below 1.
    """
    if min(n_prompts, n_bootstrap) < 1:
        raise ValueError(
            f"bootstrap_counts: got {n_prompts} prompts, {n_bootstrap} resamples; need 1 of each."
        )
    drawn = torch.randint(n_prompts, (n_bootstrap, n_prompts), generator=generator)
    return torch.zeros(n_bootstrap, n_prompts, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones_like(drawn, dtype=torch.float64)
    )


@typed
def bootstrap_mean(
    values: Float[Tensor, " _prompts"],
    counts: Float[Tensor, "_bootstrap _prompts"],
    *,
    confidence: float = 0.95,
) -> Estimate:
    """Mean of one value per prompt with a percentile bootstrap interval (Efron and Tibshirani 1993).

    Prompts without a value (NaN) are left out of the mean and of every resample, and counted. A resample
    that draws none with a value makes the interval NaN, and so do fewer than two values in all: one
    says nothing about how much others would differ.

    Args:
        values: One value per prompt.
        counts: Resamples from `bootstrap_counts`.
        confidence: Share of the bootstrap distribution inside the interval.

    Returns:
        The estimate. If all values are equal the interval has no width: it then says nothing about what
        rarer values would do.

    Raises:
        ValueError: `confidence` outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"bootstrap_mean: confidence must lie between 0 and 1, got {confidence}.")
    is_defined = ~values.isnan()
    known = torch.where(is_defined, values, 0.0).double()
    n = int(is_defined.sum())
    means = (counts @ known) / (counts @ is_defined.double())
    tail = (1 - confidence) / 2
    mean = float(known.sum() / n) if n else math.nan
    if n < 2:
        return Estimate(mean=mean, low=math.nan, high=math.nan, n=n)
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Estimate(mean=mean, low=low, high=high, n=n)


@typed
def clustered_mean(
    values: Float[Tensor, " chosen"],
    clusters: Int[Tensor, " chosen"],
    *,
    generator: torch.Generator,
    n_resamples: int = 1000,
    confidence: float = 0.95,
) -> Estimate:
    """Percentile bootstrap of a mean that resamples whole clusters, such as rows of text.

    Values of one row are not independent, so rows are drawn with replacement, each with all its values:
    mean* = sum of values drawn / number of values drawn (Efron & Tibshirani 1993). Pass differences of
    paired values to compare two of them.

    Args:
        values: One value per occurrence.
        clusters: Cluster of each value, such as its row.
        generator: Source of randomness, on the CPU.
        n_resamples: Bootstrap samples.
        confidence: Coverage aimed at, above 0 and below 1.

    Returns:
        Mean and interval.

    Raises:
        ValueError: No values, values that are not finite, or a number out of range.
    """
    if len(values) == 0 or not bool(values.isfinite().all()):
        raise ValueError(
            f"clustered_mean: expected finite values, got {len(values)} of which "
            f"{int((~values.isfinite()).sum())} are not."
        )
    if n_resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            "clustered_mean: n_resamples must be at least 1 and confidence lie between 0 and 1, got "
            f"{n_resamples} and {confidence}."
        )
    ids, cluster = torch.unique(clusters, return_inverse=True)
    mean = float(values.double().mean())
    if len(ids) == 1:
        return Estimate(mean=mean, low=math.nan, high=math.nan, n=1)
    sums = torch.zeros(len(ids), dtype=torch.float64).index_add_(0, cluster, values.double())
    counts = torch.bincount(cluster, minlength=len(ids)).double()
    drawn = torch.randint(len(ids), (n_resamples, len(ids)), generator=generator)
    means = sums[drawn].sum(dim=1) / counts[drawn].sum(dim=1)
    tail = (1 - confidence) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Estimate(mean=mean, low=low, high=high, n=len(ids))


@typed
def percentile_interval(values: Float[Tensor, " _resample"], *, confidence: float) -> tuple[float, float]:
    """Percentile interval over bootstrap samples; samples without a value (NaN) are left out.

    It is too narrow for few pairs: a 95% interval of the loss of Gaussian points in 5 dimensions covered the
    expectation in 88, 92 and 93% of 200 data sets of 9, 20 and 60 pairs.

    Args:
        values: One value per sample.
        confidence: Coverage, such as 0.95.

    Returns:
        Lower and upper end; NaN if no sample has a value.
    """
    tail = (1 - confidence) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=values.dtype, device=values.device)
    low, high = torch.nanquantile(values, ends).tolist()
    return low, high


@typed
def wilson_interval(n_yes: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share (Wilson 1927), which stays inside [0, 1] and serves 0 of n too.

    With z = 1.96 and p = n_yes / n: center (p + z^2 / 2n) / (1 + z^2 / n), half width
    z sqrt(p (1 - p) / n + z^2 / 4n^2) / (1 + z^2 / n).

    Args:
        n_yes: Items that say yes.
        n: All items.

    Returns:
        Lower and upper end; NaN without items.

    Raises:
        ValueError: Not 0 <= n_yes <= n.
    """
    if not 0 <= n_yes <= n:
        raise ValueError(f"wilson_interval: expected 0 <= n_yes <= n, got {n_yes} of {n}.")
    if n == 0:
        return math.nan, math.nan
    share, z2 = n_yes / n, _Z95**2
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return center - half, center + half
