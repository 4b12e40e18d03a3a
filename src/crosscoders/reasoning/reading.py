"""Latents of whole rows of text, a few rows at a time: what snippets and role measures are gathered from."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.kernels import SparseLatents
from crosscoders.row_stream import SupportsHarvest


@dataclass(frozen=True, kw_only=True)
class LatentRows:
    """The latents that fire in some rows of text, on the CPU.

    Args:
        first_row: Number of the first of these rows in the whole text.
        tokens: Token ids of the rows.
        mask: Which tokens count; latents are read on these only.
        row: Row of each non-zero activation, counted from `first_row`.
        position: Its position in the row.
        latent: Its latent.
        activation: Its value, above zero.
    """

    first_row: int
    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    row: Int[Tensor, " nnz"]
    position: Int[Tensor, " nnz"]
    latent: Int[Tensor, " nnz"]
    activation: Float[Tensor, " nnz"]


@typed
def read_latents(
    crosscoder: Crosscoder,
    sources: SupportsHarvest,
    tokens: Int[Tensor, "batch pos"],
    *,
    mask: Bool[Tensor, "batch pos"],
    rows_at_a_time: int = 32,
) -> Iterator[LatentRows]:
    """Run the models over rows of text once, encode, and hand out the latents that fire.

    The crosscoder works in evaluation mode, so that one token's latents do not depend on the others beside
    it, and is left in the mode it had.

    Args:
        crosscoder: A trained crosscoder.
        sources: The models, each with its hook.
        tokens: Rows of token ids.
        mask: Which tokens count.
        rows_at_a_time: Rows that go through the models together.

    Yields:
        Every row once, in order; rows without a counted token come without latents.

    Raises:
        ValueError: `rows_at_a_time` below 1, or a mask that counts no token.
    """
    if rows_at_a_time < 1:
        raise ValueError(f"read_latents: rows_at_a_time must be at least 1, got {rows_at_a_time}.")
    if not bool(mask.any()):
        raise ValueError("read_latents: the mask counts no token; give text with tokens to measure on.")
    for first in range(0, len(tokens), rows_at_a_time):
        part = slice(first, first + rows_at_a_time)
        yield _read(crosscoder, sources, tokens[part], mask[part], first)


def _read(
    crosscoder: Crosscoder, sources: SupportsHarvest, tokens: Tensor, mask: Tensor, first: int
) -> LatentRows:
    at_row, at_position = mask.nonzero(as_tuple=True)
    if len(at_row):
        activations = sources.harvest(tokens)
        sparse = _encode(crosscoder, activations[mask.to(activations.device)])
        token, latent = sparse.rows().cpu(), sparse.indices.cpu()
        values = sparse.values.float().cpu()
    else:
        token, latent, values = at_row, at_row, torch.zeros(0)
    return LatentRows(
        first_row=first,
        tokens=tokens,
        mask=mask,
        row=at_row[token],
        position=at_position[token],
        latent=latent,
        activation=values,
    )


@torch.no_grad()
def _encode(crosscoder: Crosscoder, rows: Tensor) -> SparseLatents:
    was_training = crosscoder.training
    crosscoder.eval()
    try:
        latents = crosscoder.encode(rows.to(crosscoder.W_enc.device))
    finally:
        crosscoder.train(was_training)
    return latents if isinstance(latents, SparseLatents) else SparseLatents.from_dense(latents)
