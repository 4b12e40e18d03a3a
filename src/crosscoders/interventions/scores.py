"""What a model still computes when reconstructions replace its activations."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.harvest import ModelSources
from crosscoders.interventions.splice import spliced_logits
from crosscoders.metrics import cross_entropy, kl_divergence, loss_recovered
from crosscoders.sources import column_slices


@dataclass(frozen=True, kw_only=True)
class SpliceScores:
    """Averages over the tokens asked about, in nats.

    Args:
        n_tokens: Tokens averaged over.
        kl: KL(clean || spliced) of the next-token distributions.
        ce_clean: Next-token cross-entropy of the model as it is.
        ce_spliced: The same with reconstructions in place of activations.
        ce_ablated: The same with zeros in place of activations.
    """

    n_tokens: int
    kl: float
    ce_clean: float
    ce_spliced: float
    ce_ablated: float

    @property
    def loss_recovered(self) -> float:
        """(CE ablated - CE spliced) / (CE ablated - CE clean): 1 is as good as the activation itself."""
        return loss_recovered(ce_clean=self.ce_clean, ce_spliced=self.ce_spliced, ce_ablated=self.ce_ablated)


@typed
def splice_scores(
    crosscoder: Crosscoder,
    sources: ModelSources,
    tokens: Int[Tensor, "batch pos"],
    *,
    mask: Bool[Tensor, "batch pos"],
    batch_size: int = 32,
) -> dict[str, SpliceScores]:
    """What each source's model still computes on the crosscoder's reconstruction of its activations.

    Only positions in `mask` are replaced, and those whose next token is in `mask` too are counted. The
    reconstruction is made from all sources' clean activations.

    Args:
        crosscoder: Used in evaluation mode; the caller puts it there.
        sources: The models.
        tokens: Token ids, padded on the right.
        mask: Positions to replace and to count.
        batch_size: Rows that go through the models together.

    Returns:
        Scores by source name.

    Raises:
        ValueError: No position with a counted next token.
    """
    counted = mask[:, :-1] & mask[:, 1:]
    if not bool(counted.any()):
        raise ValueError("splice_scores: mask leaves no token whose next token is counted too.")
    sums = {source.name: torch.zeros(4, dtype=torch.float64) for source in crosscoder.sources}
    for start in range(0, len(tokens), batch_size):
        rows = slice(start, start + batch_size)
        for name, part in _batch_sums(crosscoder, sources, tokens[rows], mask[rows], counted[rows]).items():
            sums[name] += part
    n = int(counted.sum())
    return {
        name: SpliceScores(
            n_tokens=n, kl=kl / n, ce_clean=clean / n, ce_spliced=spliced / n, ce_ablated=ablated / n
        )
        for name, (kl, clean, spliced, ablated) in ((name, total.tolist()) for name, total in sums.items())
    }


def _batch_sums(
    crosscoder: Crosscoder, sources: ModelSources, tokens: Tensor, mask: Tensor, counted: Tensor
) -> dict[str, Tensor]:
    with torch.no_grad():
        activations = sources.harvest(tokens)
        reconstruction = crosscoder.reconstruct(activations.flatten(0, 1)).view_as(activations)
    found = {}
    for source in crosscoder.sources:
        replacement = reconstruction[..., column_slices(crosscoder.sources)[source.name]]
        edits = {"spliced": replacement, "ablated": torch.zeros_like(replacement)}
        read = sources.tokens_for(source.name, tokens)
        with sources.on_device(source.name) as model:
            clean = model.logits(read)[:, :-1][counted].float()
            logits = {
                name: spliced_logits(model, read, hook_name=source.hook_name, replacement=edit, where=mask)[
                    :, :-1
                ][counted].float()
                for name, edit in edits.items()
            }
        targets = tokens[:, 1:][counted].to(clean.device)
        parts = [kl_divergence(clean, logits["spliced"])]
        parts += [cross_entropy(each, targets) for each in (clean, logits["spliced"], logits["ablated"])]
        found[source.name] = torch.stack([part.double().sum().cpu() for part in parts])
    return found
