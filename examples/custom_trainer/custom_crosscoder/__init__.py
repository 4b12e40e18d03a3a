"""A trainer, a loss term and an activation function of one's own on top of `crosscoders`."""

from custom_crosscoder.block_topk import BlockTopK
from custom_crosscoder.resampling import ResamplingTrainer
from custom_crosscoder.source_reconstruction import SourceReconstruction

__all__ = ["BlockTopK", "ResamplingTrainer", "SourceReconstruction"]
