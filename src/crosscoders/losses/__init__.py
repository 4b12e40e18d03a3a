"""Loss terms and their breakdown: the scalar that is logged is the scalar that is minimized.

Every term is a mean over tokens in normalized space. Terms accept dense and sparse latents.
"""

from crosscoders.losses.auxk import AuxK
from crosscoders.losses.base import HasThreshold, LossContext, LossTerm
from crosscoders.losses.breakdown import LossBreakdown, WeightedTerm, check_objective, compute_losses
from crosscoders.losses.reconstruction import DifferenceReconstruction, Reconstruction
from crosscoders.losses.sparsity import DecoderNormL1, SharedDecoderNormL1, TanhSparsity
from crosscoders.losses.thresholds import JumpReLUL0, PreActivation

__all__ = [
    "AuxK",
    "DecoderNormL1",
    "DifferenceReconstruction",
    "HasThreshold",
    "JumpReLUL0",
    "LossBreakdown",
    "LossContext",
    "LossTerm",
    "PreActivation",
    "Reconstruction",
    "SharedDecoderNormL1",
    "TanhSparsity",
    "WeightedTerm",
    "check_objective",
    "compute_losses",
]
