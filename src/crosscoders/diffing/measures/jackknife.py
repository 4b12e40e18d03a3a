"""Delete-a-block jackknife: intervals of any smooth statistic of sums that are kept block by block."""

from dataclasses import dataclass
from statistics import NormalDist
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosscoders._typing import typed


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class JackknifeEstimate:
    """A statistic with its interval, elementwise; NaN where it is undefined.

    Args:
        value: The statistic on all blocks.
        low: Lower end of the interval; NaN where leaving out some block makes the statistic undefined.
        high: Upper end.
    """

    value: Float[Tensor, "*_any"]
    low: Float[Tensor, "*_any"]
    high: Float[Tensor, "*_any"]

    @typed
    def is_above(self, threshold: float) -> Bool[Tensor, "*_any"]:
        """Where the whole interval lies above a threshold; False where it is undefined.

        Args:
            threshold: The threshold.
        """
        return self.low > threshold

    @typed
    def is_below(self, threshold: float) -> Bool[Tensor, "*_any"]:
        """Where the whole interval lies below a threshold; False where it is undefined.

        Args:
            threshold: The threshold.
        """
        return self.high < threshold


@typed
def student_factor(n_blocks: int, *, confidence: float = 0.95) -> float:
    """Two-sided quantile of Student's t with n_blocks - 1 degrees of freedom.

    Cornish-Fisher expansion of the normal quantile z in 1/v (Abramowitz & Stegun 1964, 26.7.5):
    t = z + (z^3 + z)/(4 v) + (5 z^5 + 16 z^3 + 3 z)/(96 v^2) + (3 z^7 + 19 z^5 + 17 z^3 - 15 z)/(384 v^3)
    + (79 z^9 + 776 z^7 + 1482 z^5 - 1920 z^3 - 945 z)/(92160 v^4). At 95% its error is below 1e-5 of t from
    10 blocks on, 0.03% at 5 and 0.12% at 4; with 2 or 3 blocks the exact quantile is used.

    Args:
        n_blocks: Blocks left out in turn.
        confidence: Coverage aimed at, above 0 and below 1.

    Raises:
        ValueError: Fewer than two blocks, or `confidence` out of range.
    """
    if n_blocks < 2 or not 0 < confidence < 1:
        raise ValueError(
            f"student_factor: needs at least 2 blocks and a confidence inside (0, 1), got {n_blocks} and "
            f"{confidence}."
        )
    v = n_blocks - 1
    if v == 1:
        return float(torch.tan(torch.tensor(torch.pi * confidence / 2, dtype=torch.float64)))
    if v == 2:
        return confidence * (2 / (1 - confidence**2)) ** 0.5
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / v**power for power, term in enumerate(terms))


@typed
def jackknife(
    value: Float[Tensor, "*_any"], left_out: Float[Tensor, "_block ..."], *, confidence: float = 0.95
) -> JackknifeEstimate:
    """Interval of a statistic from its values with each block left out (Tukey 1958).

    se^2 = (G - 1)/G * sum_g (theta_(-g) - mean)^2; interval: value +- t_(G-1) se. Blocks of sequences of
    about equal size are taken as independent.

    Args:
        value: The statistic on all G blocks.
        left_out: The statistic without each block.
        confidence: Coverage aimed at.

    Returns:
        The statistic with its interval.

    Raises:
        ValueError: Fewer than two blocks, or `confidence` out of range.
    """
    n_blocks = len(left_out)
    factor = student_factor(n_blocks, confidence=confidence)
    deviations = (left_out - left_out.mean(dim=0)).square().sum(dim=0)
    half = factor * (deviations * (n_blocks - 1) / n_blocks).sqrt()
    return JackknifeEstimate(value=value, low=value - half, high=value + half)


@typed
def leave_one_out(sums: Float[Tensor, "_block ..."]) -> Float[Tensor, "_block ..."]:
    """Total of all blocks but one, for each block.

    Args:
        sums: One sum per block.
    """
    return sums.sum(dim=0) - sums
