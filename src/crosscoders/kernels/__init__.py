"""Selection and decoding kernels: `reference` defines them, `dispatch` chooses what runs."""

from crosscoders.kernels.dispatch import (
    auxk,
    batch_topk_indices,
    choose_backend,
    decode,
    explain,
    row_topk_indices,
    threshold_indices,
)
from crosscoders.kernels.reference import (
    batch_topk_mask,
    decode_dense,
    decode_sparse,
    row_topk_mask,
    threshold_mask,
)
from crosscoders.kernels.sparse_latents import SparseLatents

__all__ = [
    "SparseLatents",
    "auxk",
    "batch_topk_indices",
    "batch_topk_mask",
    "choose_backend",
    "decode",
    "decode_dense",
    "decode_sparse",
    "explain",
    "row_topk_indices",
    "row_topk_mask",
    "threshold_indices",
    "threshold_mask",
]
