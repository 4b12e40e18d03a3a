"""Are categories over-represented among chosen latents? Counts beside those of random latents like them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from crosscoders._typing import typed

ANY_CATEGORY = "any"


@dataclass(frozen=True, kw_only=True)
class CategoryExcess:
    """How many chosen latents have a category, and how many of as many random ones would.

    Args:
        category: The category, or `ANY_CATEGORY`.
        n: Chosen latents.
        found: Those with the category.
        expected: Mean count of matched random latents.
        low: Their 2.5% quantile.
        high: Their 97.5% quantile.
        p_more: Share of random counts that reach `found`, with one added to both sides of the fraction.
        p_fewer: Share of random counts that do not exceed it, likewise.
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
        """Beside random latents "more", "fewer" or "as many", at 2.5% on either side."""
        if self.p_more <= 0.025:
            return "more"
        return "fewer" if self.p_fewer <= 0.025 else "as many"


@typed
def category_excess(
    category_of: Mapping[int, str | None],
    *,
    chosen: Int[Tensor, " chosen"],
    matches: Int[Tensor, "chosen _match"],
    categories: Sequence[str],
    generator: torch.Generator,
    n_resamples: int = 4000,
) -> list[CategoryExcess]:
    """Count each category among chosen latents and among random ones matched to them.

    A random count replaces every chosen latent by one of its matches, drawn anew each time. The counts of a
    category are compared one category at a time; with four of them, one in ten tables shows something by
    chance at 2.5%.

    Args:
        category_of: Category, or None, of every chosen latent and every match.
        chosen: Chosen latents.
        matches: Random latents of about the same frequency for each (`frequency_matched`).
        categories: Categories to count.
        generator: Draws.
        n_resamples: Random counts.

    Returns:
        One entry for `ANY_CATEGORY`, then one per category.

    Raises:
        KeyError: A latent without an entry in `category_of`.
    """
    pick = torch.randint(matches.shape[1], (n_resamples, len(chosen)), generator=generator)
    drawn = matches[torch.arange(len(chosen)), pick]
    found = []
    for category in (ANY_CATEGORY, *categories):
        has = _has(category_of, category, torch.cat([chosen, matches.flatten()]))
        counts = has[drawn].sum(dim=1)
        n_found = int(has[chosen].sum())
        low, high = torch.quantile(counts.double(), torch.tensor([0.025, 0.975]).double()).tolist()
        found.append(
            CategoryExcess(
                category=category,
                n=len(chosen),
                found=n_found,
                expected=float(has[matches].double().mean(dim=1).sum()),
                low=low,
                high=high,
                p_more=(1 + int((counts >= n_found).sum())) / (1 + n_resamples),
                p_fewer=(1 + int((counts <= n_found).sum())) / (1 + n_resamples),
            )
        )
    return found


def _has(category_of: Mapping[int, str | None], category: str, latents: Tensor) -> Tensor:
    """Whether each latent has the category, indexed by its number."""
    has = torch.zeros(int(latents.max()) + 1, dtype=torch.int64)
    for latent in latents.unique().tolist():
        named = category_of[latent]
        has[latent] = named is not None and category in (ANY_CATEGORY, named)
    return has
