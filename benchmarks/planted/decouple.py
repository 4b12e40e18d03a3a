"""Decoupled pairs made by hand: shared latents split into two that read and write one source each."""

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.planted.settings import BATCH_TOKENS, METHODS, Case
from crosscoders.activation_fns import BatchTopK
from crosscoders.crosscoder import Crosscoder
from crosscoders.losses import Reconstruction
from crosscoders.sources import column_slices
from crosscoders.structures import DedicatedLatents
from crosscoders.training import Trainer, TrainerConfig

TUNE_TOKENS = 400 * BATCH_TOKENS  # for the halves to learn to read their feature from one source alone
TUNE_LR = 1e-3


def decoupled(crosscoder: Crosscoder, latents: Tensor, case: Case) -> Crosscoder:
    """A crosscoder in which each of these latents is a pair, trained on for a little.

    Its first latents are the halves of the first source, the next those of the second, then come the other
    latents. Structural zeros keep the halves apart while they are trained; what they do not learn to tell
    from one source, other latents take over, as in a decoupled pair that training made by itself.

    Args:
        crosscoder: A trained crosscoder of two sources.
        latents: Numbers of the latents to split.
        case: Its world gives the rows to train on.
    """
    n = len(latents)
    split = Crosscoder(
        replace(
            crosscoder.config,
            n_latents=crosscoder.n_latents + n,
            structure=DedicatedLatents(n_per_source=(n, n)),
            activation_fn=BatchTopK(k=9),
        )
    )
    split.load_state_dict(_split_weights(crosscoder, latents))
    rows = case.draw_world().batches(
        TUNE_TOKENS, generator=case.generator(METHODS), batch_tokens=BATCH_TOKENS
    )
    numbers = TrainerConfig(lr=TUNE_LR, total_tokens=TUNE_TOKENS, log_every_steps=0)
    Trainer(split, [Reconstruction()], config=numbers).fit(rows)
    return split.eval()


def _split_weights(crosscoder: Crosscoder, latents: Tensor) -> dict[str, Tensor]:
    """Each half writes its own source's part and reads it doubled, for the part that it no longer reads."""
    is_other = torch.ones(crosscoder.n_latents, dtype=torch.bool).index_fill(0, latents, False)
    order = torch.cat([latents, latents, is_other.nonzero().flatten()])
    per_latent = {"W_enc", "b_enc", "W_dec", "selection_weight"}
    weights = {
        name: value[order] if name in per_latent else value.clone()
        for name, value in crosscoder.state_dict().items()
    }
    first, second = column_slices(crosscoder.sources).values()
    n = len(latents)
    for half, own, other in ((slice(0, n), first, second), (slice(n, 2 * n), second, first)):
        weights["W_enc"][half, own] *= 2
        weights["W_enc"][half, other] = weights["W_dec"][half, other] = 0
    return weights
