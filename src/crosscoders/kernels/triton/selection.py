"""Selections on the GPU: which latents of a batch are kept, as sparse latents of a size known beforehand."""

from crosscoders.kernels.triton.selection_batch import batch_topk
from crosscoders.kernels.triton.selection_row import row_topk
from crosscoders.kernels.triton.selection_threshold import threshold

__all__ = ["batch_topk", "row_topk", "threshold"]
