"""Codes of activations in sparse form, and what a set of latents contributes to them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.models.hooks import evaluation_mode

_TOKENS_AT_ONCE = 4096  # bounds the dense pre-activations: 0.5 GB at 32,768 latents


@torch.no_grad()
@typed
def read_codes(crosscoder: Crosscoder, x_raw: Float[Tensor, "batch width"]) -> SparseLatents:
    """Codes in evaluation mode, whatever mode the crosscoder is in, a few thousand tokens at a time.

    Args:
        crosscoder: The crosscoder.
        x_raw: Raw activations of all sources.

    Returns:
        The codes on the crosscoder's device, without gradient.
    """
    with evaluation_mode(crosscoder):
        parts = [crosscoder.encode(part.to(crosscoder.W_enc.device)) for part in x_raw.split(_TOKENS_AT_ONCE)]
    return _joined([p if isinstance(p, SparseLatents) else SparseLatents.from_dense(p) for p in parts])


def _joined(parts: list[SparseLatents]) -> SparseLatents:
    lengths = torch.cat([part.row_ptr.diff() for part in parts])
    return SparseLatents(
        values=torch.cat([part.values for part in parts]),
        indices=torch.cat([part.indices for part in parts]),
        row_ptr=torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
        n_latents=parts[0].n_latents,
    )


@torch.no_grad()
@typed
def latent_contribution(
    crosscoder: Crosscoder,
    codes: SparseLatents,
    latents: Int[Tensor, " chosen"],
    *,
    decoder: Float[Tensor, "chosen width"] | None = None,
) -> Float[Tensor, "batch width"]:
    """What a set of latents adds to the raw reconstruction: sum over the set of f_j d_j / scale.

    It is linear in the set, and exactly zero for tokens on which none of its latents fires.

    Args:
        crosscoder: The crosscoder.
        codes: Codes of some tokens.
        latents: The set, none named twice.
        decoder: Rows to use in place of the latents' own, in the space of `crosscoder.W_dec`.

    Returns:
        Contribution to every source, side by side, in raw space.
    """
    column = torch.full((crosscoder.n_latents,), -1, device=codes.indices.device)
    column[latents] = torch.arange(len(latents), device=column.device)
    at = column[codes.indices]
    in_set = at >= 0
    chosen = codes.values.new_zeros(codes.n_rows, len(latents))
    chosen[codes.rows()[in_set], at[in_set]] = codes.values[in_set]
    rows = crosscoder.W_dec.detach()[latents] if decoder is None else decoder.to(crosscoder.W_dec)
    stored = chosen.to(rows.dtype) @ rows
    return stored if crosscoder.config.is_folded else crosscoder.denormalize(stored)
