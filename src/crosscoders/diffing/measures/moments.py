"""`collect_moments`: one pass over held-out rows that serves every measure of all latents at once.

All sums are in float64 and in normalized space, with f the latents in evaluation mode, xhat = W_dec^T f +
b_dec recomputed from them in float64, e = x - xhat and r = xhat - b_dec. They are kept by block of sequences
(`crosscoders.diffing.batches`), so that intervals and held-out fits cost no second pass.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.diffing.batches import N_BLOCKS, MeasureBatch, block_of
from crosscoders.kernels import SparseLatents
from crosscoders.models.hooks import evaluation_mode
from crosscoders.sources import Source, check_activations, column_slices, scale_vector

_DENSE_ENTRIES = 2**23  # bounds the dense float64 latents that co-activation is summed from: 64 MiB


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class RowMoments:
    """First and second moments of the rows themselves, in normalized space.

    Args:
        n_rows: Rows by block.
        sums: Sum of x by block.
        products: For each source, sum of x x^T over the even blocks and over the odd ones.
    """

    n_rows: Int[Tensor, " _block"]
    sums: Float[Tensor, "_block width"]
    products: tuple[Float[Tensor, "2 _d _d"], ...]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Sums over held-out rows by block of sequences; on the CPU.

    Memory is 16 B * blocks * chosen * width + 8 B * chosen * latents + small: 30 MB for 512 latents and width
    160 in 20 blocks, but 32 GB for 32,768 latents and width 3,072; choose latents then.

    Args:
        sources: Sources in the order of their columns.
        latents: Latents for which sums with rows are kept, ascending.
        rows: Moments of the rows.
        sum_latents: sum f.
        sum_squares: sum f^2.
        n_firings: Tokens with f != 0.
        n_sequences: Sequences with a firing.
        with_error: sum f e^T.
        with_reconstruction: sum f r^T.
        coactivation: sum f_j f_l over all blocks, j among the chosen latents and l among all.
    """

    sources: tuple[Source, ...]
    latents: Int[Tensor, " chosen"]
    rows: RowMoments
    sum_latents: Float[Tensor, "_block latent"]
    sum_squares: Float[Tensor, "_block latent"]
    n_firings: Int[Tensor, "_block latent"]
    n_sequences: Int[Tensor, "_block latent"]
    with_error: Float[Tensor, "_block chosen width"]
    with_reconstruction: Float[Tensor, "_block chosen width"]
    coactivation: Float[Tensor, "chosen latent"]

    @property
    def n_rows(self) -> int:
        """Rows seen."""
        return int(self.rows.n_rows.sum())

    @property
    def is_used(self) -> Bool[Tensor, " _block"]:
        """Blocks that hold any row; the others are left out of intervals."""
        return self.rows.n_rows > 0

    @property
    def is_live(self) -> Bool[Tensor, " latent"]:
        """Latents that fire at all."""
        return self.n_firings.sum(dim=0) > 0

    @typed
    def restored_error(
        self, source: str, decoder: Float[Tensor, "_at d_model"], *, at: Int[Tensor, " _at"] | None = None
    ) -> Float[Tensor, "_block _at d_model"]:
        """sum f y^T by block, for the error with the latent's own part put back: y = e + f d.

        Args:
            source: Name of the source.
            decoder: Its decoder rows d in normalized space.
            at: Places among the chosen latents that they belong to; None for all.

        Returns:
            Sums in float64, in normalized units.
        """
        at = torch.arange(len(self.latents)) if at is None else at
        squares = self.sum_squares[:, self.latents[at], None]
        return self.with_error[:, at, column_slices(self.sources)[source]] + squares * decoder


@typed
def normalized_weights(
    crosscoder: Crosscoder,
) -> tuple[Float[Tensor, "latent width"], Float[Tensor, " width"]]:
    """`W_dec` and `b_dec` in normalized space, in float64, also if the crosscoder is folded; detached.

    Args:
        crosscoder: Any crosscoder.
    """
    W_dec, b_dec = crosscoder.W_dec.detach().double(), crosscoder.b_dec.detach().double()
    if not crosscoder.config.is_folded:
        return W_dec, b_dec
    scale = scale_vector(crosscoder.sources, dtype=torch.float64, device=W_dec.device)
    return W_dec * scale, b_dec * scale


def check_moments(moments: Moments, crosscoder: Crosscoder, *, where: str) -> None:
    """Raise ValueError unless the moments fit the crosscoder's sources and latents."""
    expected = (crosscoder.sources, crosscoder.n_latents)
    got = (moments.sources, moments.sum_latents.shape[1])
    if got != expected:
        raise ValueError(
            f"{where}: the moments come from {got[1]} latents over {[s.name for s in got[0]]} but the "
            f"crosscoder has {expected[1]} over {[s.name for s in expected[0]]}, or their widths or scales "
            "differ; collect moments with this crosscoder."
        )


@typed
@torch.no_grad()
def collect_moments(
    crosscoder: Crosscoder,
    batches: Iterable[MeasureBatch],
    *,
    n_blocks: int = N_BLOCKS,
    latents: Int[Tensor, " chosen"] | None = None,
) -> Moments:
    """Read held-out rows once and keep the sums that all measures derive from.

    Encodes in evaluation mode and leaves the crosscoder in the mode it had.

    Args:
        crosscoder: Any crosscoder.
        batches: Held-out raw activations; they need not have been seen in any order.
        n_blocks: Blocks of sequences.
        latents: Latents for which sums with rows are kept; None for all. See `Moments` for the memory.

    Returns:
        The sums.

    Raises:
        ValueError: Rows of another width or not finite, a sequence in two batches, rows in fewer than two
            blocks, or latents that do not exist.
    """
    sums = _Sums(crosscoder, n_blocks=n_blocks, latents=latents)
    with evaluation_mode(crosscoder):
        for batch in batches:
            sums.add(batch)
    return sums.finish()


@typed
def nonzero_entries(
    latents: Float[Tensor, "batch latent"] | SparseLatents,
) -> tuple[Int[Tensor, " nnz"], Int[Tensor, " nnz"], Float[Tensor, " nnz"]]:
    """Row, latent and float64 activation of every latent that fires, ordered by row, where the latents lie.

    Args:
        latents: Dense or sparse latents.
    """
    if isinstance(latents, SparseLatents):
        fires = latents.values.detach() != 0
        return latents.rows()[fires], latents.indices[fires], latents.values.detach()[fires].double()
    row, latent = latents.detach().nonzero(as_tuple=True)
    return row, latent, latents.detach()[row, latent].double()


def sparse_matrix(values: Tensor, *, rows: Tensor, columns: Tensor, shape: tuple[int, int]) -> Tensor:
    """A sparse matrix for `addmm_`, which adds its product to a dense one entry by entry, in order."""
    return torch.sparse_coo_tensor(torch.stack([rows, columns]), values, shape, check_invariants=False)


class _Sums:
    def __init__(self, crosscoder: Crosscoder, *, n_blocks: int, latents: Tensor | None) -> None:
        self._crosscoder, self._n_blocks = crosscoder, n_blocks
        self._device, n_latents = crosscoder.W_dec.device, crosscoder.n_latents
        chosen = torch.arange(n_latents) if latents is None else latents.cpu().unique()
        if len(chosen) == 0 or int(chosen[0]) < 0 or int(chosen[-1]) >= n_latents:
            raise ValueError(
                f"collect_moments: latents must name some of 0..{n_latents - 1}, got {len(chosen)} numbers"
                + (f" from {int(chosen[0])} to {int(chosen[-1])}." if len(chosen) else ".")
            )
        self._latents = chosen
        self._place = torch.full((n_latents,), -1, device=self._device)
        self._place[chosen.to(self._device)] = torch.arange(len(chosen), device=self._device)
        self._W_dec, self._b_dec = normalized_weights(crosscoder)
        self._scale = scale_vector(crosscoder.sources, dtype=torch.float64, device=self._device)
        self._seen: set[int] = set()
        self._start(n_blocks, n_latents, len(chosen))

    def _start(self, n_blocks: int, n_latents: int, n_chosen: int) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self._device)

        width = self._crosscoder.width
        self.n_rows = zeros(n_blocks, dtype=torch.int64)
        self.sums = zeros(n_blocks, width)
        self.products = [zeros(2, s.d_model, s.d_model) for s in self._crosscoder.sources]
        self.sum_latents, self.sum_squares = zeros(n_blocks, n_latents), zeros(n_blocks, n_latents)
        self.n_firings = zeros(n_blocks, n_latents, dtype=torch.int64)
        self.n_sequences = zeros(n_blocks, n_latents, dtype=torch.int64)
        self.with_error = zeros(n_blocks * n_chosen, width)
        self.with_reconstruction = zeros(n_blocks * n_chosen, width)
        self.coactivation = zeros(n_chosen, n_latents)

    def add(self, batch: MeasureBatch) -> None:
        sequence = batch.sequence.to(self._device)
        raw = check_activations(batch.rows, self._crosscoder.sources, where="collect_moments")
        raw = raw.to(self._device)
        self._check(raw, sequence)
        block = block_of(sequence, self._n_blocks)
        entries = nonzero_entries(self._crosscoder.encode(raw))
        x = raw.double() * self._scale
        self._add_rows(x, block)
        self._add_latents(entries, block, sequence)
        self._add_products(entries, x, block)
        self._add_coactivation(entries, len(x))

    def _check(self, raw: Tensor, sequence: Tensor) -> None:
        if not bool(raw.isfinite().all()):
            raise ValueError(
                f"collect_moments: {int((~raw.isfinite()).any(dim=1).sum())} of {len(raw)} rows hold NaN or "
                "infinity."
            )
        new = set(sequence.unique().tolist())
        if repeated := new & self._seen:
            raise ValueError(
                f"collect_moments: sequence {min(repeated)} came in an earlier batch too; number the "
                "sequences over all batches and let none span two."
            )
        self._seen |= new

    def _add_rows(self, x: Tensor, block: Tensor) -> None:
        self.n_rows += torch.bincount(block, minlength=self._n_blocks)
        self.sums.index_add_(0, block, x)
        for half in (0, 1):
            rows = x[block % 2 == half]
            for products, columns in zip(self.products, self._columns(), strict=True):
                products[half] += rows[:, columns].T @ rows[:, columns]

    def _add_latents(self, entries: tuple[Tensor, Tensor, Tensor], block: Tensor, sequence: Tensor) -> None:
        row, latent, value = entries
        n_latents = self._crosscoder.n_latents
        key = block[row] * n_latents + latent
        for total, weight in ((self.sum_latents, value), (self.sum_squares, value.square())):
            total += torch.bincount(key, weight, minlength=total.numel()).view_as(total)
        self.n_firings += torch.bincount(key, minlength=self.n_firings.numel()).view_as(self.n_firings)
        numbers, local = torch.unique(sequence, return_inverse=True)
        fires = torch.zeros(len(numbers), n_latents, dtype=torch.bool, device=self._device)
        fires[local[row], latent] = True
        self.n_sequences.index_add_(0, block_of(numbers, self._n_blocks), fires.long())

    def _add_products(self, entries: tuple[Tensor, Tensor, Tensor], x: Tensor, block: Tensor) -> None:
        row, latent, value = entries
        of_rows = sparse_matrix(value, rows=row, columns=latent, shape=(len(x), self._crosscoder.n_latents))
        reconstruction = torch.zeros_like(x).addmm_(of_rows, self._W_dec)
        place = self._place[latent]
        kept = place >= 0
        of_blocks = sparse_matrix(
            value[kept],
            rows=block[row[kept]] * len(self._latents) + place[kept],
            columns=row[kept],
            shape=(len(self.with_error), len(x)),
        )
        self.with_reconstruction.addmm_(of_blocks, reconstruction)
        self.with_error.addmm_(of_blocks, x - reconstruction - self._b_dec)

    def _add_coactivation(self, entries: tuple[Tensor, Tensor, Tensor], n_rows: int) -> None:
        n_latents = self._crosscoder.n_latents
        step = max(1, _DENSE_ENTRIES // n_latents)
        for start in range(0, n_rows, step):
            here = (entries[0] >= start) & (entries[0] < start + step)
            row, latent, value = entries[0][here] - start, entries[1][here], entries[2][here]
            n = min(step, n_rows - start)
            dense = torch.zeros(n, n_latents, dtype=torch.float64, device=self._device)
            dense[row, latent] = value
            place = self._place[latent]
            kept = place >= 0
            shape = (len(self._latents), n)
            self.coactivation.addmm_(
                sparse_matrix(value[kept], rows=place[kept], columns=row[kept], shape=shape), dense
            )

    def finish(self) -> Moments:
        n_used = int((self.n_rows > 0).sum())
        if n_used < 2:
            raise ValueError(
                f"collect_moments: {len(self._seen)} sequences lie in {n_used} of {self._n_blocks} blocks; "
                "measures need rows of at least 2 blocks, intervals those of all."
            )
        by_block = (self._n_blocks, len(self._latents), self._crosscoder.width)
        return Moments(
            sources=self._crosscoder.sources,
            latents=self._latents,
            rows=RowMoments(
                n_rows=self.n_rows.cpu(),
                sums=self.sums.cpu(),
                products=tuple(products.cpu() for products in self.products),
            ),
            sum_latents=self.sum_latents.cpu(),
            sum_squares=self.sum_squares.cpu(),
            n_firings=self.n_firings.cpu(),
            n_sequences=self.n_sequences.cpu(),
            with_error=self.with_error.view(by_block).cpu(),
            with_reconstruction=self.with_reconstruction.view(by_block).cpu(),
            coactivation=self.coactivation.cpu(),
        )

    def _columns(self) -> list[slice]:
        return list(column_slices(self._crosscoder.sources).values())
