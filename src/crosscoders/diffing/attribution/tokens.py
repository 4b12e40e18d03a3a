"""What each latent, token by token, adds to a function of each source's logits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.diffing.attribution.stream_gradient import (
    Method,
    checked_metric,
    path_points,
    stream_gradient,
)
from crosscoders.harvest import ModelSources
from crosscoders.interventions.ablation.codes import read_codes
from crosscoders.interventions.ablation.latent_sets import check_latents
from crosscoders.interventions.ablation.replay import replayed_prefix
from crosscoders.kernels.ops import decode
from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.sources import Source, check_models_read, column_slices

_ELEMENTS_AT_ONCE = 2**24  # bounds the decoder rows gathered for the entries: 64 MB in float32


@dataclass(frozen=True, kw_only=True)
class TokenAttribution:
    """Effects of every latent of a set on every token on which it fires; one entry per (token, latent).

    Args:
        sources: The crosscoder's sources, in the order of the last axis.
        rows: Row of text of each entry.
        positions: Its position in the row.
        latents: Its latent.
        activations: The latent's activation there.
        effects: What it adds to each source's metric, in the unit of the metric (float64).
        metric: Each source's metric of each row, clean (float64).
        removed: What the metric loses where the set is taken out of the source's stream: clean minus ablated.
    """

    sources: tuple[Source, ...]
    rows: Int[Tensor, " nnz"]
    positions: Int[Tensor, " nnz"]
    latents: Int[Tensor, " nnz"]
    activations: Float[Tensor, " nnz"]
    effects: Float[Tensor, "nnz source"]
    metric: Float[Tensor, "batch source"]
    removed: Float[Tensor, "batch source"]


@typed
def attribute_tokens(
    crosscoder: Crosscoder,
    sources: ModelSources,
    tokens: Int[Tensor, "batch pos"],
    *,
    metric: Callable[[Tensor], Tensor],
    latents: Int[Tensor, " chosen"] | None = None,
    method: Method = "integrated",
    n_steps: int = 10,
    where: Bool[Tensor, "batch pos"] | None = None,
) -> TokenAttribution:
    """Attribute a function of the logits to the latents of a set, token by token, in every source's model.

    effect_ij^s = f_ij d_j^s . G_i^s, with f_ij latent j's activation on token i, d_j^s its decoder row of
    source s in raw space, and G_i^s the gradient of source s's metric with respect to the stream of token i
    at its hook: at the clean stream ("gradient": the first-order estimate of zero ablation), or its mean on
    the way from the stream without the set's contribution to the clean one ("integrated"; Sundararajan et
    al. 2017, for latents Marks et al. 2024). What the crosscoder does not reconstruct stays as it is.

    The set comes back as a whole, so integrated effects add up to what taking out the set does (`removed`);
    pass one latent alone for its own ablation effect. Codes are read once, from all sources' clean
    activations, and stay fixed.

    Args:
        crosscoder: Read in evaluation mode; left in the mode it had.
        sources: The whole models, in the order of the crosscoder's sources.
        tokens: Token ids, padded on the right; they go through the models together.
        metric: Gets a source's logits [batch pos vocab] and returns one number per row, which depends on
            that row's logits only.
        latents: The set, none named twice; None for all latents.
        method: As above.
        n_steps: Forward and backward passes of "integrated".
        where: Positions whose latents count; leave padding and special tokens out. None is everywhere.

    Returns:
        One entry for each latent of the set and token on which it fires.

    Raises:
        ValueError: Sources other than the crosscoder's, a latent that does not exist, a truncated model, or
            a metric that is not one finite number per row.
    """
    check_models_read(crosscoder.sources, sources.sources, where="attribution")
    chosen, points = _checked_set(crosscoder, latents), path_points(method, n_steps=n_steps)
    is_counted = torch.ones_like(tokens, dtype=torch.bool) if where is None else where
    reading = _Reading(crosscoder, sources.harvest(tokens), is_counted, chosen)
    found = [
        _run_source(reading, sources, source, tokens=tokens, metric=metric, points=points)
        for source in crosscoder.sources
    ]
    metrics, removed, effects = (torch.stack(parts, dim=1) for parts in zip(*found, strict=True))
    return TokenAttribution(
        sources=crosscoder.sources,
        rows=reading.places[reading.rows, 0].cpu(),
        positions=reading.places[reading.rows, 1].cpu(),
        latents=reading.latents.cpu(),
        activations=reading.values.cpu(),
        effects=effects,
        metric=metrics,
        removed=removed,
    )


def _checked_set(crosscoder: Crosscoder, latents: Tensor | None) -> Tensor:
    if latents is None:
        return torch.arange(crosscoder.n_latents, device=crosscoder.W_dec.device)
    check_latents("attribution", latents, n_latents=crosscoder.n_latents)
    return latents.to(crosscoder.W_dec.device)


class _Reading:
    """Codes of the set at the positions that count, and what they add to the streams."""

    def __init__(
        self, crosscoder: Crosscoder, activations: Tensor, is_counted: Tensor, chosen: Tensor
    ) -> None:
        self.is_counted = is_counted = is_counted.to(activations.device)
        self.places = is_counted.nonzero().to(chosen.device)
        codes = _codes_of_set(crosscoder, activations[is_counted].to(chosen.device), chosen)
        self.rows, self.latents, self.values = codes.rows(), codes.indices, codes.values
        # In the space of W_dec; the rows of a folded crosscoder are raw already.
        self.decoder = crosscoder.W_dec.detach()
        self.contribution = decode(codes, self.decoder)
        self.is_folded = crosscoder.config.is_folded
        self.columns = column_slices(crosscoder.sources)

    def removed(self, source: Source) -> Tensor:
        """The set's contribution to the source's stream [batch pos d_model], zero where nothing counts."""
        own = self.contribution[:, self.columns[source.name]] / self._scale(source)
        stream = own.new_zeros(*self.is_counted.shape, own.shape[1])
        stream[self.is_counted.to(own.device)] = own
        return stream

    def effects(self, source: Source, gradient: Tensor) -> Tensor:
        """f_ij d_j . G_i of every entry, in float64 on the CPU."""
        slopes = gradient[self.is_counted.to(gradient.device)].to(self.values.device)
        decoder = self.decoder[:, self.columns[source.name]]
        step = max(1, _ELEMENTS_AT_ONCE // decoder.shape[1])
        dots = [
            torch.linalg.vecdot(decoder[latents].to(slopes), slopes[rows]).double()
            for latents, rows in zip(self.latents.split(step), self.rows.split(step), strict=True)
        ]
        return (self.values.double() * torch.cat(dots) / self._scale(source)).cpu()

    def _scale(self, source: Source) -> float:
        return 1.0 if self.is_folded else source.scale


def _codes_of_set(crosscoder: Crosscoder, x_raw: Tensor, chosen: Tensor) -> SparseLatents:
    """Codes with the entries of the chosen latents only; none at all without tokens."""
    if len(x_raw) == 0:
        empty = torch.zeros(0, dtype=torch.int64, device=chosen.device)
        values, row_ptr = crosscoder.W_dec.detach().new_zeros(0), empty.new_zeros(1)
        return SparseLatents(values, empty, row_ptr, crosscoder.n_latents)
    codes = read_codes(crosscoder, x_raw)
    in_set = torch.isin(codes.indices, chosen) & (codes.values != 0)
    n_before = torch.cat([codes.row_ptr.new_zeros(1), in_set.cumsum(0)])
    return SparseLatents(
        codes.values[in_set], codes.indices[in_set], n_before[codes.row_ptr], codes.n_latents
    )


def _run_source(
    reading: _Reading,
    sources: ModelSources,
    source: Source,
    *,
    tokens: Tensor,
    metric: Callable[[Tensor], Tensor],
    points: Sequence[tuple[float, float]],
) -> tuple[Tensor, Tensor, Tensor]:
    """The clean metric, what it loses without the set, and the effect of every entry."""
    hook_name, removed = source.hook_name, reading.removed(source)
    tokens = sources.tokens_for(source.name, tokens)
    with (
        sources.on_device(source.name) as model,
        replayed_prefix(model, tokens, hook_name=hook_name) as logits,
    ):
        clean = checked_metric(metric, logits).detach().double().cpu()
        with model.edit(hook_name, lambda stream: stream - removed.to(stream)):
            ablated = checked_metric(metric, model.logits(tokens)).detach().double().cpu()
        gradient = stream_gradient(
            model, tokens, hook_name=hook_name, metric=metric, removed=removed, points=points
        )
    return clean, clean - ablated, reading.effects(source, gradient)
