"""Whether other seeds find the same latents: the best match of each latent in crosscoders trained alike.

Seeds agree on a minority of latents (Paulo & Belrose 2025 report about 30% for autoencoders), so a latent of
one crosscoder is a finding about the models only if crosscoders with other initial weights have it as well.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.diffing.batches import N_BLOCKS, MeasureBatch, block_of
from crosscoders.diffing.measures.jackknife import JackknifeEstimate, jackknife, leave_one_out
from crosscoders.diffing.measures.moments import nonzero_entries, normalized_weights
from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.sources import Source, column_slices

_PAIRS_AT_ONCE = 1 << 22  # of firings on one token: bounds the scratch memory to about 200 MB
_PRODUCTS_AT_ONCE = 1 << 24  # entries of the matrix of products of two crosscoders: 128 MB

# Row, latent and activation of every firing of one batch, by row and within a row by latent.
_Entries = tuple[Tensor, Tensor, Tensor]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Stability:
    """The best match of each latent of the first crosscoder in each other one.

    Args:
        n_tokens: Tokens read.
        correlation: Mean over the other crosscoders of the activation correlation with the best match, with
            its interval over sequences; NaN for a latent that never fires.
        by_seed: That correlation in each of them.
        match: Number of the best match in each of them; -1 where no correlation is defined.
        cosine: Cosine with the decoder row of the match over all sources side by side in normalized space, in
            which a source counts as much as the latent writes there.
        cosine_by_source: Cosine in each source; says little where the latent hardly writes.
        min_correlation: From what correlation on a crosscoder counts as having the latent.
        min_cosine: Likewise for `cosine`.
    """

    n_tokens: int
    correlation: JackknifeEstimate
    by_seed: Float[Tensor, "latent _other"]
    match: Int[Tensor, "latent _other"]
    cosine: Float[Tensor, "latent _other"]
    cosine_by_source: Float[Tensor, "latent _other source"]
    min_correlation: float
    min_cosine: float

    @property
    def n_found(self) -> Int[Tensor, " latent"]:
        """How many of the other crosscoders have each latent: same tokens, same direction."""
        found = (self.by_seed >= self.min_correlation) & (self.cosine >= self.min_cosine)
        return found.sum(dim=1)


@typed
@torch.no_grad()
def stability(
    crosscoders: Sequence[Crosscoder],
    batches: Iterable[MeasureBatch],
    *,
    n_blocks: int = N_BLOCKS,
    min_correlation: float = 0.7,
    min_cosine: float = 0.7,
) -> Stability:
    """Match the latents of the first crosscoder with those of others that were trained on the same sources.

    The match is the latent of highest activation correlation (Pearson, over all tokens, zeros included) on
    the same held-out tokens; its decoder cosine, on which the match does not depend, tells whether it also
    writes the same. Two latents of the first may have one match. The interval is a delete-a-block jackknife
    over sequences of the mean correlation, with the matches held fixed.

    Reads the batches once and keeps every firing: 12 bytes each for every crosscoder. The products of all
    latents of two crosscoders are summed in pieces of 128 MB. Encodes in evaluation mode and leaves
    every crosscoder in the mode it had.

    Args:
        crosscoders: The one whose latents are judged, then one or more others, such as other seeds.
        batches: Held-out raw activations.
        n_blocks: Blocks of sequences.
        min_correlation: From what correlation on a crosscoder counts as having the latent; with 0.7 each
            explains half of the other's variance.
        min_cosine: Likewise for the decoder cosine.

    Returns:
        Matches and correlations, one row per latent of the first crosscoder.

    Raises:
        ValueError: Fewer than two crosscoders, other sources in one of them, or rows in fewer than two
            blocks.
    """
    _check_comparable(crosscoders)
    codes, blocks = _encoded(crosscoders, batches, n_blocks=n_blocks)
    used, sizes = torch.unique(torch.cat(blocks), return_counts=True)
    if len(used) < 2:
        raise ValueError(
            f"stability: intervals need rows of at least 2 blocks of sequences, got {len(used)}; pass more "
            "sequences."
        )
    first, *others = (_Firings(each, blocks, used, sizes) for each in codes)
    matches = torch.stack([_best_matches(first, other) for other in others], dim=1)
    agreed = [_agreement(first, other, match) for other, match in zip(others, matches.T)]
    by_seed = torch.stack([value for value, _ in agreed], dim=1)
    left_out = torch.stack([values for _, values in agreed], dim=2)
    cosines = [_cosines(crosscoders[0], other, m) for other, m in zip(crosscoders[1:], matches.T)]
    return Stability(
        n_tokens=int(sizes.sum()),
        correlation=jackknife(by_seed.mean(dim=1), left_out.mean(dim=2)),
        by_seed=by_seed,
        match=matches,
        cosine=torch.stack([joint for joint, _ in cosines], dim=1),
        cosine_by_source=torch.stack([by_source for _, by_source in cosines], dim=1),
        min_correlation=min_correlation,
        min_cosine=min_cosine,
    )


class _Firings:
    """Every firing of one crosscoder, and the sums by block and latent that correlations need."""

    def __init__(
        self, codes: Sequence[SparseLatents], blocks: Sequence[Tensor], used: Tensor, sizes: Tensor
    ) -> None:
        self.codes = codes
        self.n_latents = codes[0].n_latents
        self.sizes = sizes
        self._blocks = [torch.searchsorted(used, block) for block in blocks]
        entries = [self.entries(batch) for batch in range(len(codes))]
        self.sums = self.by_block([activation for _, _, activation in entries])
        self.squares = self.by_block([activation.square() for _, _, activation in entries])

    def entries(self, batch: int) -> _Entries:
        return nonzero_entries(self.codes[batch])

    def by_block(self, weights: Sequence[Tensor]) -> Tensor:
        """Sums of one weight per firing over each block and latent, [block latent]."""
        total = torch.zeros(len(self.sizes) * self.n_latents, dtype=torch.float64)
        for batch, (block, weight) in enumerate(zip(self._blocks, weights)):
            row, latent, _ = self.entries(batch)
            total.index_add_(0, block[row] * self.n_latents + latent, weight)
        return total.view(-1, self.n_latents)


def _check_comparable(crosscoders: Sequence[Crosscoder]) -> None:
    if len(crosscoders) < 2:
        raise ValueError(f"stability: needs two crosscoders or more, got {len(crosscoders)}.")

    def shape(sources: Sequence[Source]) -> list[tuple[str, int]]:
        return [(source.name, source.d_model) for source in sources]

    expected = shape(crosscoders[0].sources)
    for i, other in enumerate(crosscoders):
        if shape(other.sources) != expected:
            raise ValueError(
                f"stability: crosscoder {i + 1} reads {shape(other.sources)} (name, d_model), but the first "
                f"reads {expected}; latents are matched on the same rows."
            )


def _encoded(
    crosscoders: Sequence[Crosscoder], batches: Iterable[MeasureBatch], *, n_blocks: int
) -> tuple[list[list[SparseLatents]], list[Tensor]]:
    """Firings of each crosscoder batch by batch, on the CPU, and the block of each row."""
    codes: list[list[SparseLatents]] = [[] for _ in crosscoders]
    blocks: list[Tensor] = []
    modes = [crosscoder.training for crosscoder in crosscoders]
    try:
        for crosscoder in crosscoders:
            crosscoder.eval()
        for batch in batches:
            blocks.append(block_of(batch.sequence, n_blocks).cpu())
            for crosscoder, kept in zip(crosscoders, codes):
                kept.append(_on_cpu(crosscoder.encode(batch.rows.to(crosscoder.W_enc.device))))
    finally:
        for crosscoder, mode in zip(crosscoders, modes):
            crosscoder.train(mode)
    if not blocks:
        raise ValueError("stability: the batches gave nothing; expected at least one MeasureBatch.")
    return codes, blocks


def _on_cpu(latents: Tensor | SparseLatents) -> SparseLatents:
    sparse = latents if isinstance(latents, SparseLatents) else SparseLatents.from_dense(latents)
    return SparseLatents(sparse.values.cpu(), sparse.indices.cpu(), sparse.row_ptr.cpu(), sparse.n_latents)


def _best_matches(first: _Firings, other: _Firings) -> Tensor:
    """The other's latent of highest correlation with each of the first's; -1 where none is defined."""
    n = first.sizes.sum()
    mine, theirs = ((each.sums.sum(dim=0), each.squares.sum(dim=0)) for each in (first, other))
    found = []
    for own in torch.arange(first.n_latents).split(max(1, _PRODUCTS_AT_ONCE // other.n_latents)):
        products = _products(first, other, start=int(own[0]), n_own=len(own))
        correlation = _correlation(
            products, (mine[0][own, None], mine[1][own, None]), (theirs[0], theirs[1]), n=n
        )
        best, number = torch.where(correlation.isnan(), -torch.inf, correlation).max(dim=1)
        found.append(torch.where(best.isinf(), -1, number))
    return torch.cat(found)


def _products(first: _Firings, other: _Firings, *, start: int, n_own: int) -> Tensor:
    """Sum over tokens of f_j g_l for the latents from `start` on, from the pairs that fire together."""
    total = torch.zeros(n_own * other.n_latents, dtype=torch.float64)
    for batch, codes in enumerate(first.codes):
        row, latent, activation = first.entries(batch)
        kept = (latent >= start) & (latent < start + n_own)
        row, latent, activation = row[kept], latent[kept] - start, activation[kept]
        other_row, other_latent, other_activation = other.entries(batch)
        n_other = torch.bincount(other_row, minlength=codes.n_rows)
        begins = n_other.cumsum(0) - n_other
        at_once = max(1, _PAIRS_AT_ONCE // max(1, int(n_other.max())))
        for part in torch.arange(len(row)).split(at_once):
            n_pairs = n_other[row[part]]
            one = part.repeat_interleave(n_pairs)
            within = torch.arange(len(one)) - (n_pairs.cumsum(0) - n_pairs).repeat_interleave(n_pairs)
            two = begins[row[one]] + within
            place = latent[one] * other.n_latents + other_latent[two]
            total.index_add_(0, place, activation[one] * other_activation[two])
    return total.view(n_own, other.n_latents)


def _agreement(first: _Firings, other: _Firings, match: Tensor) -> tuple[Tensor, Tensor]:
    """Correlation of each latent with its match, on all blocks and without each block."""
    is_matched = match >= 0
    at = torch.where(is_matched, match, 0)
    weights = [_matched_products(first, other, at, batch=i) for i in range(len(first.codes))]
    sums = (first.by_block(weights), first.sums, first.squares, other.sums[:, at], other.squares[:, at])

    def correlation(products: Tensor, f: Tensor, ff: Tensor, g: Tensor, gg: Tensor, *, n: Tensor) -> Tensor:
        return torch.where(is_matched, _correlation(products, (f, ff), (g, gg), n=n), torch.nan)

    whole = correlation(*(each.sum(dim=0) for each in sums), n=first.sizes.sum())
    without = correlation(*map(leave_one_out, sums), n=leave_one_out(first.sizes.double())[:, None])
    return whole, without


def _matched_products(first: _Firings, other: _Firings, match: Tensor, *, batch: int) -> Tensor:
    """Activation of each firing times that of the latent's match on the same token, 0 if that is silent."""
    row, latent, activation = first.entries(batch)
    other_row, other_latent, other_activation = other.entries(batch)
    keys, wanted = other_row * other.n_latents + other_latent, row * other.n_latents + match[latent]
    if len(keys) == 0:
        return torch.zeros_like(activation)
    place = torch.searchsorted(keys, wanted)
    place = torch.where(place < len(keys), place, 0)
    return torch.where(keys[place] == wanted, activation * other_activation[place], 0.0)


def _correlation(
    products: Tensor, one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor], *, n: Tensor
) -> Tensor:
    """Pearson correlation from sums of products and each one's sums and sums of squares; NaN if constant."""
    means = one[0] / n, two[0] / n
    variances = one[1] / n - means[0].square(), two[1] / n - means[1].square()
    deviations = [torch.where(variance > 0, variance, torch.nan).sqrt() for variance in variances]
    return (products / n - means[0] * means[1]) / (deviations[0] * deviations[1])


def _cosines(first: Crosscoder, other: Crosscoder, match: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine of each decoder row with that of its match, over all columns and in each source."""
    is_matched = (match >= 0).to(first.W_dec.device)
    mine = normalized_weights(first)[0]
    theirs = normalized_weights(other)[0].to(mine.device)[torch.where(match >= 0, match, 0).to(mine.device)]

    def cosine(columns: slice) -> Tensor:
        a, b = mine[:, columns], theirs[:, columns]
        value = (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))
        return torch.where(is_matched, value, torch.nan).cpu()

    by_source = [cosine(columns) for columns in column_slices(first.sources).values()]
    return cosine(slice(None)), torch.stack(by_source, dim=1)
