"""Sparse crosscoders that say what distillation changed between two language models."""

import crosscoders.diffing as diffing
import crosscoders.experiments as experiments
import crosscoders.geometry as geometry
import crosscoders.hub as hub
import crosscoders.interventions as interventions
import crosscoders.kernels as kernels
import crosscoders.losses as losses
import crosscoders.metrics as metrics
import crosscoders.models as models
import crosscoders.parallel as parallel
import crosscoders.reasoning as reasoning
import crosscoders.structures as structures
from crosscoders._version import __version__
from crosscoders.activation_fns import ActivationFn, BatchTopK, JumpReLU, ReLU, TopK
from crosscoders.buffer import ActivationBuffer
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig, CrosscoderOutput
from crosscoders.diffing import SpikeIn, Verdicts
from crosscoders.errors import (
    AdapterMismatchError,
    CheckpointError,
    CrosscodersError,
    DivergedError,
    KernelUnavailableError,
)
from crosscoders.experiments import (
    Finding,
    Material,
    Prompt,
    Reproduction,
    Study,
    bundled_plan,
    open_study,
    plan_from_toml,
    reproduce,
    run_experiment,
)
from crosscoders.geometry import GeometryProbe, WordTask, read_word_tasks
from crosscoders.harvest import ModelSources, SplitHarvest, load_sources
from crosscoders.hub import convert, estimate_scale, from_pretrained, push_to_hub
from crosscoders.interventions import Ablate, Add, AddVector, Clamp, Scale, SteeringHook
from crosscoders.kernels import SparseLatents
from crosscoders.latents import LatentTable, TokenBatch, tabulate_latents
from crosscoders.losses import (
    AuxK,
    DecoderNormL1,
    DifferenceReconstruction,
    JumpReLUL0,
    LossBreakdown,
    LossContext,
    LossTerm,
    PreActivation,
    Reconstruction,
    SharedDecoderNormL1,
    TanhSparsity,
)
from crosscoders.models import IdPolicy, IdRule, LanguageModel, load_model, stream_texts
from crosscoders.pipeline.config import DataConfig, RunConfig, TextPart
from crosscoders.pipeline.diff import diff
from crosscoders.pipeline.installation.doctor import Diagnosis, doctor
from crosscoders.pipeline.model_config import ModelConfig
from crosscoders.pipeline.planning.plan import Plan, plan
from crosscoders.pipeline.planning.ranks import RankLayout
from crosscoders.pipeline.planning.speed import Speed
from crosscoders.pipeline.report import ReportOptions, write_report
from crosscoders.pipeline.run import Run
from crosscoders.pipeline.sweep import Sweep, SweepResult
from crosscoders.pipeline.system_config import SystemConfig
from crosscoders.pipeline.verify import Verification, VerifyOptions, verify
from crosscoders.prefetch import PrefetchedBatches, Waits
from crosscoders.reasoning import EndpointConfig, LexicalAnnotator, LLMAnnotator
from crosscoders.report.inspection import Inspection, inspect_text
from crosscoders.sources import Source, scale_from_mean_norm
from crosscoders.store import ActivationStore
from crosscoders.structures import DedicatedLatents, SharedLatents, Structure
from crosscoders.training import (
    Callback,
    History,
    Preempted,
    Preemption,
    ProgressBar,
    StepReport,
    Trainer,
    TrainerConfig,
    fit_many,
    warm_start,
)
from crosscoders.training.loggers import (
    CsvLogger,
    Logger,
    TensorBoardLogger,
    TrackioLogger,
    WandbLogger,
    make_loggers,
)

__all__ = [
    "Ablate",
    "ActivationBuffer",
    "ActivationFn",
    "ActivationStore",
    "AdapterMismatchError",
    "Add",
    "AddVector",
    "AuxK",
    "BatchTopK",
    "Callback",
    "CheckpointError",
    "Clamp",
    "Crosscoder",
    "CrosscoderConfig",
    "CrosscoderOutput",
    "CrosscodersError",
    "CsvLogger",
    "DataConfig",
    "DecoderNormL1",
    "DedicatedLatents",
    "Diagnosis",
    "DifferenceReconstruction",
    "DivergedError",
    "EndpointConfig",
    "Finding",
    "GeometryProbe",
    "History",
    "IdPolicy",
    "IdRule",
    "Inspection",
    "JumpReLU",
    "JumpReLUL0",
    "KernelUnavailableError",
    "LLMAnnotator",
    "LanguageModel",
    "LatentTable",
    "LexicalAnnotator",
    "Logger",
    "LossBreakdown",
    "LossContext",
    "LossTerm",
    "Material",
    "ModelConfig",
    "ModelSources",
    "Plan",
    "PreActivation",
    "Preempted",
    "Preemption",
    "PrefetchedBatches",
    "ProgressBar",
    "Prompt",
    "RankLayout",
    "ReLU",
    "Reconstruction",
    "ReportOptions",
    "Reproduction",
    "Run",
    "RunConfig",
    "Scale",
    "SharedDecoderNormL1",
    "SharedLatents",
    "Source",
    "SparseLatents",
    "Speed",
    "SpikeIn",
    "SplitHarvest",
    "SteeringHook",
    "StepReport",
    "Structure",
    "Study",
    "Sweep",
    "SweepResult",
    "SystemConfig",
    "TanhSparsity",
    "TensorBoardLogger",
    "TextPart",
    "TokenBatch",
    "TopK",
    "TrackioLogger",
    "Trainer",
    "TrainerConfig",
    "Verdicts",
    "Verification",
    "VerifyOptions",
    "Waits",
    "WandbLogger",
    "WordTask",
    "__version__",
    "bundled_plan",
    "convert",
    "diff",
    "diffing",
    "doctor",
    "estimate_scale",
    "experiments",
    "fit_many",
    "from_pretrained",
    "geometry",
    "hub",
    "inspect_text",
    "interventions",
    "kernels",
    "load_model",
    "load_sources",
    "losses",
    "make_loggers",
    "metrics",
    "models",
    "open_study",
    "parallel",
    "plan",
    "plan_from_toml",
    "push_to_hub",
    "read_word_tasks",
    "reasoning",
    "reproduce",
    "run_experiment",
    "scale_from_mean_norm",
    "stream_texts",
    "structures",
    "tabulate_latents",
    "verify",
    "warm_start",
    "write_report",
]
