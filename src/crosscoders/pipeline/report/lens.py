"""Logit lens: the tokens that each latent's decoder direction raises and lowers most, in each model."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.errors import AdapterMismatchError
from crosscoders.harvest import ModelSources
from crosscoders.models.unembedding import logit_readout


@dataclass(frozen=True, kw_only=True)
class Lens:
    """Tokens by how a latent's direction moves their logits; values per unit of the latent's activation.

    Args:
        top: Ids of the tokens raised most, the most raised first; 0 where a model has no lens.
        top_value: Change of their logits against the mean over the vocabulary; NaN where there is no lens.
        bottom: Ids of those lowered most, the most lowered first.
        bottom_value: Change of theirs.
    """

    top: Int[Tensor, "latent source _rank"]
    top_value: Float[Tensor, "latent source _rank"]
    bottom: Int[Tensor, "latent source _rank"]
    bottom_value: Float[Tensor, "latent source _rank"]


@torch.no_grad()
@typed
def logit_lens(
    crosscoder: Crosscoder, sources: ModelSources, *, n: int, max_bytes: int
) -> tuple[Lens | None, tuple[str, ...]]:
    """Logit lens of each latent's raw-space decoder direction in each model.

    The direction goes straight to the unembedding, with the final norm's gain in between
    (`crosscoders.models.unembedding.logit_readout`); what later layers make of it is left out, and so is the
    division by the stream's norm.

    Args:
        crosscoder: The crosscoder.
        sources: Its models, by the same names.
        n: Tokens named at each end, fewer where a vocabulary has fewer.
        max_bytes: Size of the largest temporary tensor, logits of a chunk of latents; one model's readout
            matrix stands beside it.

    Returns:
        The lens, or None if no model has one; and a sentence for each model that has none, saying why.
    """
    parts, notes = [], []
    n = min(n, *(_n_ids(sources, source.name) for source in crosscoder.sources))
    for source in crosscoder.sources:
        try:
            parts.append(_of_source(crosscoder, sources, source.name, n=n, max_bytes=max_bytes))
        except (AdapterMismatchError, ValueError) as err:
            parts.append(_nothing(crosscoder.n_latents, n))
            notes.append(f"No logit lens in {source.name}: {err}")
    if len(notes) == len(crosscoder.sources):
        return None, tuple(notes)
    top, top_value, bottom, bottom_value = (torch.stack(part, dim=1) for part in zip(*parts, strict=True))
    lens = Lens(top=top, top_value=top_value, bottom=bottom, bottom_value=bottom_value)
    return lens, tuple(notes)


def _n_ids(sources: ModelSources, name: str) -> int:
    """Ids that the tokenizer knows: embeddings are padded beyond them."""
    tokenizer = sources.models[name].tokenizer or sources.tokenizer
    n_vocab = sources.models[name].n_vocab
    return n_vocab if tokenizer is None else min(n_vocab, max(tokenizer.get_vocab().values()) + 1)


def _of_source(
    crosscoder: Crosscoder, sources: ModelSources, name: str, *, n: int, max_bytes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top ids and values, bottom ids and values, each [latent rank], on the CPU."""
    with sources.on_device(name) as model:
        readout = logit_readout(model, n_vocab=_n_ids(sources, name))
    scale = next(source.scale for source in crosscoder.sources if source.name == name)
    rows = crosscoder.decoder(name).detach().float()
    raw = rows if crosscoder.config.is_folded else rows / scale
    found: list[tuple[Tensor, ...]] = []
    for chunk in raw.split(max(1, max_bytes // (4 * len(readout)))):
        change = chunk.to(readout.device) @ readout.T
        best, worst = change.topk(n, dim=1), change.topk(n, dim=1, largest=False)
        found.append((best.indices.cpu(), best.values.cpu(), worst.indices.cpu(), worst.values.cpu()))
    top, top_value, bottom, bottom_value = (torch.cat(part) for part in zip(*found, strict=True))
    return top, top_value, bottom, bottom_value


def _nothing(n_latents: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ids, values = torch.zeros(n_latents, n, dtype=torch.int64), torch.full((n_latents, n), torch.nan)
    return ids, values, ids, values
