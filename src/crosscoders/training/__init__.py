"""Training: the loop, its numbers, its observers and its checkpoints."""

from crosscoders.training.callbacks import Callback, History, ProgressBar
from crosscoders.training.config import TrainerConfig
from crosscoders.training.report import StepReport
from crosscoders.training.trainer import Trainer
from crosscoders.training.warm_start import warm_start

__all__ = ["Callback", "History", "ProgressBar", "StepReport", "Trainer", "TrainerConfig", "warm_start"]
