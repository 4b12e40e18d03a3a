"""What a latent's page says for its verdict and its category: every figure that was measured."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.diffing.verdicts import Verdicts
from crosscoders.latents import LatentTable
from crosscoders.report.site.pages import LatentEvidence

_ENRICHMENT = ("auroc/", "precision/", "recall/")


@typed
def evidence_of(latents: LatentTable, verdicts: Verdicts | None) -> LatentEvidence:
    """The columns of `verdicts.csv` and the enrichment of every question, latent by latent.

    Args:
        latents: The run's table.
        verdicts: Its verification; None, or one without evidence, leaves that part empty.
    """
    questions = [name for name in latents.columns if name.startswith(_ENRICHMENT)]
    reason: list[str | None] = [None] * len(latents)
    measured: list[str] = []
    values = None
    if verdicts is not None and verdicts.evidence is not None:
        reason = [found.reason for found in verdicts.judgements]
        measured = [name for name in verdicts.evidence.columns if name != "latent"]
        values = _side_by_side(verdicts.evidence, measured)
    return LatentEvidence(
        reason=reason,
        columns=measured,
        values=values,
        enrichment_columns=questions,
        enrichment=_side_by_side(latents, questions) if questions else None,
    )


def _side_by_side(table: LatentTable, names: Sequence[str]) -> Float[Tensor, "latent _column"]:
    return torch.stack([table[name].float() for name in names], dim=1)
