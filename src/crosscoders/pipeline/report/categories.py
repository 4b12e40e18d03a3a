"""The reasoning category that each latent tells best, if it tells any."""

import re

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.latents import LatentTable
from crosscoders.reasoning import CATEGORIES

LEAST_AUROC = 0.7  # below it a latent is said to have no category


@typed
def category_scores(latents: LatentTable) -> tuple[Float[Tensor, "latent category"], str] | None:
    """AUROC of each latent on the questions about each category, and the kind of question.

    Onset questions (does the act start at the next token?) where the table has them; else the mean over
    marker words of function questions (is this word the act?).

    Args:
        latents: A run's table.

    Returns:
        Scores in the order of `crosscoders.reasoning.CATEGORIES`, NaN where undefined, and "onset" or
        "function"; None if the table has no such questions.
    """
    for kind in ("onset", "function"):
        scores = [_score(latents, kind, category) for category in CATEGORIES]
        if any(score is not None for score in scores):
            nothing = torch.full((len(latents),), torch.nan, dtype=torch.float64)
            return torch.stack([nothing if score is None else score for score in scores], dim=1), kind
    return None


@typed
def best_category(
    scores: Float[Tensor, "latent category"],
) -> tuple[Int[Tensor, " latent"], Float[Tensor, " latent"]]:
    """The category that each latent tells best, -1 below an AUROC of 0.7, and that AUROC.

    Args:
        scores: Result of `category_scores`; NaN is passed over.
    """
    best, category = torch.where(scores.isnan(), -torch.inf, scores).max(dim=1)
    best = torch.where(best.isneginf(), torch.nan, best)
    return torch.where(best >= LEAST_AUROC, category, -1), best


def _score(latents: LatentTable, kind: str, category: str) -> Tensor | None:
    name = re.compile(rf"auroc/{kind}/{re.escape(category)}(/[^/]+)?")
    found = [column.double() for key, column in latents.columns.items() if name.fullmatch(key)]
    return torch.stack(found).mean(dim=0) if found else None
