"""The sparse form of latents: only the entries that are stored, row by row, and the same latent by latent."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.kernels.autograd import GatherEntries


@final
@dataclass(frozen=True, eq=False)
class SparseLatents:
    """Latents of a batch in compressed rows; gradients flow through `values`.

    Args:
        values: Stored entries, row by row.
        indices: Latent of each entry, ascending within a row and without repeats, int64.
        row_ptr: Row `i` owns the entries `row_ptr[i]:row_ptr[i + 1]`; int64, one more than there are rows.
        n_latents: Width of the dense form.
    """

    values: Float[Tensor, " nnz"]
    indices: Int[Tensor, " nnz"]
    row_ptr: Int[Tensor, " row"]
    n_latents: int

    @property
    def n_rows(self) -> int:
        """Number of tokens."""
        return self.row_ptr.shape[0] - 1

    def rows(self) -> Int[Tensor, " nnz"]:
        """Row of each stored entry."""
        lengths = self.row_ptr.diff()
        rows = torch.arange(self.n_rows, device=self.row_ptr.device)
        return rows.repeat_interleave(lengths, output_size=self.indices.shape[0])

    def to_dense(self) -> Float[Tensor, "batch latent"]:
        """The same latents with zeros filled in."""
        flat = self.rows() * self.n_latents + self.indices
        dense = self.values.new_zeros(self.n_rows * self.n_latents).index_add(0, flat, self.values)
        return dense.view(self.n_rows, self.n_latents)

    @classmethod
    @typed
    def from_dense(cls, latents: Float[Tensor, "batch latent"]) -> "SparseLatents":
        """Keep the non-zero entries of dense latents.

        Args:
            latents: Dense latents.

        Returns:
            Their sparse form; `from_dense(x).to_dense()` equals `x`.
        """
        return cls.gather(latents, (latents.detach() != 0).flatten().nonzero().squeeze(1))

    @classmethod
    @typed
    def gather(
        cls, pre_acts: Float[Tensor, "batch latent"], flat_indices: Int[Tensor, " nnz"]
    ) -> "SparseLatents":
        """Take the given entries of a dense matrix, as a selection kernel names them.

        Args:
            pre_acts: Values to take from; gradients flow back to the entries taken.
            flat_indices: Ascending positions in the flattened matrix.

        Returns:
            The sparse matrix with these entries.
        """
        n_rows, n_latents = pre_acts.shape
        starts = torch.arange(n_rows + 1, device=pre_acts.device) * n_latents
        return cls(
            values=_entries(pre_acts, flat_indices),
            indices=flat_indices % n_latents,
            row_ptr=torch.searchsorted(flat_indices, starts),
            n_latents=n_latents,
        )


def _entries(pre_acts: Tensor, flat: Tensor) -> Tensor:
    if torch.compiler.is_compiling() or not pre_acts.requires_grad:
        return pre_acts.reshape(-1).index_select(0, flat)
    return GatherEntries.apply(pre_acts, flat)


@final
@dataclass(frozen=True, eq=False)
class LatentMajor:
    """Where the entries of `SparseLatents` stand when they are sorted by latent instead of by row.

    Args:
        order: Stable permutation of the stored entries that sorts them by latent.
        rows: Row of each entry, in that order.
        col_ptr: Latent `j` owns the sorted entries `col_ptr[j]:col_ptr[j + 1]`; one more than latents.
    """

    order: Int[Tensor, " nnz"]
    rows: Int[Tensor, " nnz"]
    col_ptr: Int[Tensor, " latent"]


@typed
def latent_major(latents: SparseLatents) -> LatentMajor:
    """Sort the stored entries by latent; no host synchronization, deterministic.

    Args:
        latents: Sparse latents.

    Returns:
        The permutation, the row of each sorted entry and the bounds of each latent.
    """
    by_latent, order = torch.sort(latents.indices, stable=True)
    bounds = torch.arange(latents.n_latents + 1, device=by_latent.device)
    return LatentMajor(order, latents.rows()[order], torch.searchsorted(by_latent, bounds))
