"""Sparse crosscoders that say what distillation changed between two language models."""

import crosscoders.kernels as kernels
import crosscoders.losses as losses
import crosscoders.metrics as metrics
import crosscoders.models as models
from crosscoders._version import __version__
from crosscoders.activation_fns import ActivationFn, BatchTopK, JumpReLU, ReLU, TopK
from crosscoders.buffer import ActivationBuffer
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig, CrosscoderOutput
from crosscoders.errors import AdapterMismatchError, CheckpointError, CrosscodersError, KernelUnavailableError
from crosscoders.harvest import ModelSources, load_sources
from crosscoders.interventions import AddVector, SteeringHook
from crosscoders.kernels import SparseLatents
from crosscoders.latents import LatentTable, TokenBatch, tabulate_latents
from crosscoders.losses import (
    AuxK,
    DecoderNormL1,
    JumpReLUL0,
    LossBreakdown,
    LossContext,
    LossTerm,
    PreActivation,
    Reconstruction,
    TanhSparsity,
)
from crosscoders.models import LanguageModel, load_model
from crosscoders.pipeline.config import DataConfig, RunConfig
from crosscoders.pipeline.diff import diff
from crosscoders.pipeline.run import Run
from crosscoders.pretrained import from_pretrained
from crosscoders.sources import Source, scale_from_mean_norm
from crosscoders.training import Callback, History, ProgressBar, StepReport, Trainer, TrainerConfig

__all__ = [
    "ActivationBuffer",
    "ActivationFn",
    "AdapterMismatchError",
    "AddVector",
    "AuxK",
    "BatchTopK",
    "Callback",
    "CheckpointError",
    "Crosscoder",
    "CrosscoderConfig",
    "CrosscoderOutput",
    "CrosscodersError",
    "DataConfig",
    "DecoderNormL1",
    "History",
    "JumpReLU",
    "JumpReLUL0",
    "KernelUnavailableError",
    "LanguageModel",
    "LatentTable",
    "LossBreakdown",
    "LossContext",
    "LossTerm",
    "ModelSources",
    "PreActivation",
    "ProgressBar",
    "ReLU",
    "Reconstruction",
    "Run",
    "RunConfig",
    "Source",
    "SparseLatents",
    "SteeringHook",
    "StepReport",
    "TanhSparsity",
    "TokenBatch",
    "TopK",
    "Trainer",
    "TrainerConfig",
    "__version__",
    "diff",
    "from_pretrained",
    "kernels",
    "load_model",
    "load_sources",
    "losses",
    "metrics",
    "models",
    "scale_from_mean_norm",
    "tabulate_latents",
]
