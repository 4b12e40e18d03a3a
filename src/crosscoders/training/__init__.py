"""Training: the loop, its numbers, its observers and its checkpoints."""

from crosscoders.training.callbacks import Callback, History, ProgressBar
from crosscoders.training.config import TrainerConfig
from crosscoders.training.difference import DifferenceBatches
from crosscoders.training.many import fit_many
from crosscoders.training.preemption import Preempted, Preemption
from crosscoders.training.report import StepReport
from crosscoders.training.trainer import Trainer
from crosscoders.training.warm_start import warm_start

__all__ = [
    "Callback",
    "DifferenceBatches",
    "History",
    "Preempted",
    "Preemption",
    "ProgressBar",
    "StepReport",
    "Trainer",
    "TrainerConfig",
    "fit_many",
    "warm_start",
]
