"""Which firings a latent's page shows, chosen for all latents at once."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.pipeline.report.firings import Firings


@dataclass(frozen=True, kw_only=True)
class Places:
    """Chosen tokens, latent after latent: the top ones, strongest first, then those of the quantiles.

    Args:
        ptr: Where the places of each latent start, and last their number.
        latent: Latent of each place.
        token: Its token, counted through all rows.
        is_quantile: Whether it was taken from a quantile rather than from the top.
    """

    ptr: Int[Tensor, " _latent_and_end"]
    latent: Int[Tensor, " _place"]
    token: Int[Tensor, " _place"]
    is_quantile: Bool[Tensor, " _place"]


@typed
def choose_places(firings: Firings, *, n_top: int, n_quantile: int) -> Places:
    """Where each latent fires most, one per row of text, and one place from each quantile.

    The same tokens as `crosscoders.reasoning.snippets.top_snippets` and `quantile_snippets` take; of equal
    activations the earlier token comes first.

    Args:
        firings: Where latents fire.
        n_top: Top places of each latent, fewer where it fires in fewer rows.
        n_quantile: Quantiles, fewer where it fires on fewer tokens.
    """
    latent = firings.latent()
    ranked = _by_activation(firings, latent)
    top = ranked[_is_top(latent[ranked], firings.token[ranked] // firings.n_positions, firings.ptr, n_top)]
    quantile = ranked[_middles(firings.ptr, n_quantile)]
    chosen = torch.cat([top, quantile])
    is_quantile = torch.arange(len(chosen)) >= len(top)
    order = torch.argsort(latent[chosen], stable=True)  # top before quantile, each strongest first
    chosen, is_quantile = chosen[order], is_quantile[order]
    counts = torch.bincount(latent[chosen], minlength=firings.n_latents)
    return Places(
        ptr=torch.cat([counts.new_zeros(1), counts.cumsum(dim=0)]),
        latent=latent[chosen],
        token=firings.token[chosen],
        is_quantile=is_quantile,
    )


def _by_activation(firings: Firings, latent: Tensor) -> Tensor:
    """The firings latent by latent, the strongest first and of equals the earlier token."""
    order = torch.argsort(firings.activation, descending=True, stable=True)
    return order[torch.argsort(latent[order], stable=True)]


def _is_top(latent: Tensor, row: Tensor, ptr: Tensor, n_top: int) -> Tensor:
    """Of ranked firings those that are the first of their row and among the first `n_top` such ones."""
    key = latent * (int(row.max()) + 1 if len(row) else 1) + row
    by_key, order = torch.sort(key, stable=True)
    is_first = torch.ones(len(key), dtype=torch.bool)
    is_first[order[1:]] = by_key[1:] != by_key[:-1]
    before = torch.cat([torch.zeros(1, dtype=torch.int64), is_first.cumsum(dim=0)])
    rank = before[:-1] - before[ptr[latent]]  # rows of this latent that came before
    return is_first & (rank < n_top)


def _middles(ptr: Tensor, n_parts: int) -> Tensor:
    """Middle of each of `n_parts` equal parts of each latent's ranked firings, as `quantile_middles` says."""
    n_items = ptr.diff()[:, None]
    parts = n_items.clamp(max=n_parts)
    part = torch.arange(n_parts)
    middle = (2 * part + 1) * n_items // (2 * parts).clamp(min=1)
    return (ptr[:-1, None] + middle)[part < parts]
