"""Running one model on the other's activation plus what some latents say is different.

Anchors: "no patch" is the first model's activation alone; "difference of means" adds one vector; "all
latents" adds every latent's part, and "all latents and bias" the whole reconstructed difference; "true
difference" gives the second model back, so that its KL tells the rounding alone.

Controls draw other live latents, as many as the set has. "count": these with their own codes, hence of
another frequency and size. "norm": the same, rescaled token by token to the norm of the set's edit; where
none of them fires there is nothing to rescale (`unscalable`). "identity": the set's own codes with the
decoder rows of those drawn, rescaled likewise: the same tokens and sizes, other directions.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.diffing.causal.edits import (
    Patch,
    PatchTokens,
    anchor_patches,
    control_patches,
    draw_controls,
    set_patch,
)
from crosscoders.diffing.causal.result import CausalCheck
from crosscoders.diffing.causal.sums import PatchKey, PatchSums
from crosscoders.harvest import ModelSources
from crosscoders.interventions.ablation.latent_sets import check_latents
from crosscoders.interventions.ablation.replay import replayed_prefix
from crosscoders.interventions.splice import spliced_logits
from crosscoders.metrics import kl_divergence
from crosscoders.sources import Source, check_models_read, compared_pair

_TOKENS_AT_ONCE = 256  # bounds the log-softmax copies: 0.15 GB each at 152,000 tokens of vocabulary


@torch.no_grad()
@typed
def causal_check(
    crosscoder: Crosscoder,
    sources: ModelSources,
    *,
    tokens: Int[Tensor, "held_out pos"],
    mask: Bool[Tensor, "held_out pos"],
    sets: Mapping[str, Int[Tensor, " _"]],
    is_live: Bool[Tensor, " latent"],
    generator: torch.Generator,
    pair: tuple[str, str] | None = None,
    counted: Bool[Tensor, "held_out pos"] | None = None,
    mean_difference: Float[Tensor, " d_model"] | None = None,
    n_draws: int = 5,
    batch_size: int = 8,
) -> CausalCheck:
    """How much of the KL between two models some latents close when their difference is patched in.

    h_S = h^first + sum over j in S of f_j (d_j^second - d_j^first), in raw space, is written at the hook of
    the second source; its model runs on, and KL(second || patched) is read at every token (Minder et al.
    2025). Share closed = (KL without patch - KL of S) / KL without patch, sums before the ratio. Anchors and
    controls: see the module. `pair` the other way round asks what takes the second model back to the first.

    Args:
        crosscoder: Read in evaluation mode, and left in the mode it had.
        sources: The crosscoder's models; that of the second source whole, not truncated.
        tokens: Held-out text, padded on the right; each row is a sequence.
        mask: Positions to patch, without padding and untrained ids; the others keep the model's activation.
        sets: Latents of each set by its name.
        is_live: Latents that controls may draw, such as those that fire on the training text.
        generator: Draws controls and resamples, on the CPU.
        pair: (first, second) source; None for the first and the last.
        counted: Positions whose KL is averaged; None for `mask`. Rows without any are not run.
        mean_difference: `difference_of_means(...).vector` of other text; None leaves that anchor out.
        n_draws: Controls of each kind for each set; 0 for none.
        batch_size: Rows that go through the models together.

    Returns:
        Scores of anchors and sets.

    Raises:
        ValueError: Unequal widths, models truncated or not the crosscoder's, no set or an empty one, unknown
            latents, no token, too few live latents, or numbers out of range.

    Example:
        options = {"is_live": is_live, "generator": torch.Generator().manual_seed(0)}
        causal_check(crosscoder, sources, tokens=tokens, mask=mask, sets={"survivors": latents}, **options)
    """
    first, second = compared_pair(crosscoder.sources, pair, where="causal_check", one_width=True)
    mask, counted = mask.cpu(), (mask if counted is None else counted).cpu()
    check_models_read(crosscoder.sources, sources.sources, where="causal_check")
    sources.models[second.name].require_whole("the causal check")
    _check_numbers(mask, counted, n_draws=n_draws, batch_size=batch_size)
    sets = _checked_sets(sets, n_latents=crosscoder.n_latents, n_live=len(is_live))
    _check_vector(mean_difference, d_model=first.d_model)
    patches = _patches(sets, is_live.cpu(), mean_difference, n_draws=n_draws, generator=generator)
    found = PatchSums(patches, n_sequences=len(tokens))
    for rows in counted.any(dim=1).nonzero().flatten().split(batch_size):
        batch = _Batch(rows=rows, tokens=tokens[rows], mask=mask[rows], counted=counted[rows])
        _run(crosscoder, sources, pair=(first, second), batch=batch, found=found)
    return found.result((first.name, second.name), sets, counted, n_draws=n_draws, generator=generator)


def _check_numbers(mask: Tensor, counted: Tensor, *, n_draws: int, batch_size: int) -> None:
    if n_draws < 0 or batch_size < 1:
        raise ValueError(
            f"causal_check: expected n_draws >= 0 and batch_size >= 1, got {n_draws} and {batch_size}."
        )
    in_patched_rows = counted & mask.any(dim=1, keepdim=True)
    if not bool(counted.any()) or not torch.equal(in_patched_rows, counted):
        raise ValueError(
            f"causal_check: counted asks for {int(counted.sum())} tokens, {int(in_patched_rows.sum())} of "
            "them in rows where mask patches some; it needs at least one, and all in such rows."
        )


def _checked_sets(sets: Mapping[str, Tensor], *, n_latents: int, n_live: int) -> dict[str, Tensor]:
    """The sets on the CPU."""
    empty = [name for name, latents in sets.items() if len(latents) == 0]
    if not sets or empty:
        raise ValueError(
            f"causal_check: sets {sorted(sets)} has empty ones: {empty}; without survivors, take the re-used "
            "or re-scaled latents instead."
        )
    for name, latents in sets.items():
        check_latents(f"causal_check: set {name!r}", latents, n_latents=n_latents)
    if n_live != n_latents:
        raise ValueError(f"causal_check: is_live speaks of {n_live} latents, the crosscoder has {n_latents}.")
    return {name: latents.cpu() for name, latents in sets.items()}


def _check_vector(mean_difference: Tensor | None, *, d_model: int) -> None:
    if mean_difference is not None and len(mean_difference) != d_model:
        raise ValueError(
            f"causal_check: mean_difference has width {len(mean_difference)}, the sources have {d_model}."
        )


def _patches(
    sets: Mapping[str, Tensor],
    is_live: Tensor,
    mean_difference: Tensor | None,
    *,
    n_draws: int,
    generator: torch.Generator,
) -> dict[PatchKey, Patch]:
    patches: dict[PatchKey, Patch] = {
        ("anchor", name, 0): patch for name, patch in anchor_patches(mean_difference).items()
    }
    for name, latents in sets.items():
        patches["set", name, 0] = set_patch(latents)
        draws = draw_controls(latents, is_live, n_draws=n_draws, generator=generator)
        for at, drawn in enumerate(draws):
            controls = control_patches(latents, drawn)
            patches |= {(kind, name, at): patch for kind, patch in controls.items()}
    return patches


@dataclass(frozen=True, kw_only=True, eq=False)
class _Batch:
    """Some rows of the text: their numbers, what they say, what is patched and what is counted."""

    rows: Tensor
    tokens: Tensor
    mask: Tensor
    counted: Tensor


def _run(
    crosscoder: Crosscoder,
    sources: ModelSources,
    *,
    pair: tuple[Source, Source],
    batch: _Batch,
    found: PatchSums,
) -> None:
    """Every patch on one batch of rows; what lies below the hook runs once."""
    activations, second = sources.harvest(batch.tokens), pair[1]
    x_raw = activations[batch.mask.to(activations.device)].to(crosscoder.W_enc.device)
    patched = PatchTokens(crosscoder, x_raw, pair=pair)
    read = sources.tokens_for(second.name, batch.tokens)
    replacement = patched.start.new_zeros(*read.shape, second.d_model)
    is_patched = batch.mask.to(replacement.device)
    sequence = batch.rows[batch.counted.nonzero()[:, 0]]
    with (
        sources.on_device(second.name) as model,
        replayed_prefix(model, read, hook_name=second.hook_name) as logits,
    ):
        is_counted = batch.counted.to(logits.device)
        clean = logits[is_counted]
        for key, patch in found.patches.items():
            edit = patch(patched)
            replacement[is_patched] = patched.start + edit.added
            logits = spliced_logits(
                model, read, hook_name=second.hook_name, replacement=replacement, where=is_patched
            )
            found.add(key, edit, kl=_token_kl(clean, logits[is_counted]), sequence=sequence)


def _token_kl(clean: Tensor, patched: Tensor) -> Tensor:
    pieces = zip(clean.split(_TOKENS_AT_ONCE), patched.split(_TOKENS_AT_ONCE), strict=True)
    return torch.cat([kl_divergence(p, q).cpu() for p, q in pieces])
