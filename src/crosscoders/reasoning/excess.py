"""Are categories over-represented among chosen latents? Counts beside those of random latents like them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._typing import typed

ANY_CATEGORY = "any"


@dataclass(frozen=True, kw_only=True)
class CategoryExcess:
    """How many chosen latents have a category, and how many would if they were chosen at random.

    Random means: as many are drawn from each stratum of frequency, of chosen latents and controls together.

    Args:
        category: The category, or `ANY_CATEGORY`.
        n: Chosen latents.
        found: Those with the category.
        expected: Mean count of random ones.
        low: 2.5% quantile of that count.
        high: Its 97.5% quantile.
        p_more: Probability that it reaches `found`.
        p_fewer: Probability that it does not exceed `found`.
    """

    category: str
    n: int
    found: int
    expected: float
    low: float
    high: float
    p_more: float
    p_fewer: float

    @property
    def verdict(self) -> str:
        """Beside random latents "more", "fewer" or "as many"; each of the two tails is tested at 2.5%."""
        if self.p_more <= 0.025:
            return "more"
        return "fewer" if self.p_fewer <= 0.025 else "as many"


@typed
def category_excess(
    category_of: Mapping[int, str | None],
    *,
    chosen: Int[Tensor, " chosen"],
    controls: Int[Tensor, " _controls"],
    frequency: Float[Tensor, " latent"],
    categories: Sequence[str],
    stratum_size: int = 20,
) -> list[CategoryExcess]:
    """Count each category among chosen latents, and among random ones of about the same frequency.

    A stratified permutation test. Chosen latents and controls are put in the order of frequency and cut into
    strata of about `stratum_size`, equal frequencies together. If the label "chosen" has nothing to do with
    the category among latents of one stratum, every way to hand out as many labels within each stratum is
    equally likely, and the count of a stratum is hypergeometric; that of all is the sum, whose distribution
    is computed in full rather than sampled. So "more" comes up by chance at most in 2.5% of tables with no
    excess, "fewer" likewise, either in 5%. That holds for one category at one end: of four categories, one
    in ten tables (1 - 0.975^4) may show "more" for one of them by chance, and one in five "more" or "fewer".

    Controls may be any latents taken without a look at their category (`frequency_matched`). Their number
    matters for power only: a stratum without controls, or without chosen latents, says nothing.

    Args:
        category_of: Category, or None, of every chosen latent and every control.
        chosen: Chosen latents, no repeats.
        controls: Other latents to compare with; repeats count once.
        frequency: Share of tokens on which each latent of the crosscoder fires.
        categories: Categories to count.
        stratum_size: Latents in a stratum, about; fewer latents make one stratum.

    Returns:
        One entry for `ANY_CATEGORY`, then one per category.

    Raises:
        KeyError: A latent without an entry in `category_of`.
        ValueError: No chosen latent or one twice, one that is a control too, or `stratum_size` below 1.
    """
    controls = controls.unique()
    _check(chosen, controls, stratum_size)
    latents = torch.cat([chosen, controls])
    stratum = _strata(frequency[latents], stratum_size)
    is_chosen = torch.arange(len(latents)) < len(chosen)
    named = [category_of[latent] for latent in latents.tolist()]
    found = []
    for category in (ANY_CATEGORY, *categories):
        has = torch.tensor([name is not None and category in (ANY_CATEGORY, name) for name in named])
        found.append(_excess(category, has, is_chosen, stratum))
    return found


def _excess(category: str, has: Tensor, is_chosen: Tensor, stratum: Tensor) -> CategoryExcess:
    shares = torch.ones(1, dtype=torch.float64)  # probability of each count, strata added one by one
    for each in stratum.unique():
        within = stratum == each
        n, n_has, n_chosen = int(within.sum()), int(has[within].sum()), int(is_chosen[within].sum())
        shares = _sum_of(shares, _hypergeometric(n, n_has, n_chosen))
    n_found = int((has & is_chosen).sum())
    below = shares.cumsum(0)
    low, high = (float((below < q - 1e-12).sum()) for q in (0.025, 0.975))
    return CategoryExcess(
        category=category,
        n=int(is_chosen.sum()),
        found=n_found,
        expected=float((shares * torch.arange(len(shares))).sum()),
        low=low,
        high=high,
        p_more=float(shares[n_found:].sum()),
        p_fewer=float(shares[: n_found + 1].sum()),
    )


def _strata(frequency: Tensor, size: int) -> Tensor:
    n_strata = max(1, len(frequency) // size)
    first_rank = torch.searchsorted(frequency.sort().values, frequency)  # equal ones have the same
    return first_rank * n_strata // len(frequency)


def _hypergeometric(n: int, n_has: int, n_drawn: int) -> Tensor:
    """Probability of 0, 1, .. n_drawn items with the category among those drawn from n of which n_has do."""
    ways = [math.comb(n_has, count) * math.comb(n - n_has, n_drawn - count) for count in range(n_drawn + 1)]
    return torch.tensor([way / math.comb(n, n_drawn) for way in ways], dtype=torch.float64)


def _sum_of(left: Tensor, right: Tensor) -> Tensor:
    """Distribution of the sum of two independent counts."""
    total = torch.zeros(len(left) + len(right) - 1, dtype=torch.float64)
    for count, share in enumerate(right.tolist()):
        total[count : count + len(left)] += share * left
    return total


def _check(chosen: Tensor, controls: Tensor, stratum_size: int) -> None:
    if not len(chosen) or len(chosen.unique()) < len(chosen):
        raise ValueError(f"category_excess: chosen must be some latents without repeats, got {len(chosen)}.")
    both = chosen[torch.isin(chosen, controls)].tolist()
    if both:
        raise ValueError(f"category_excess: latents {both[:5]} are both chosen and controls; leave them out.")
    if stratum_size < 1:
        raise ValueError(f"category_excess: stratum_size must be at least 1, got {stratum_size}.")
