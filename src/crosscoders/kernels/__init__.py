"""What every step and every selection runs on: `reference` defines it, `dispatch` chooses what runs."""

from crosscoders.kernels.dispatch import StepShape, choose_backend, explain
from crosscoders.kernels.ops import (
    auxk,
    batch_topk_indices,
    decode,
    encode,
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
from crosscoders.kernels.sparse_latents import LatentMajor, SparseLatents, latent_major

__all__ = [
    "LatentMajor",
    "SparseLatents",
    "StepShape",
    "auxk",
    "batch_topk_indices",
    "batch_topk_mask",
    "choose_backend",
    "decode",
    "decode_dense",
    "decode_sparse",
    "encode",
    "explain",
    "latent_major",
    "row_topk_indices",
    "row_topk_mask",
    "threshold_indices",
    "threshold_mask",
]
