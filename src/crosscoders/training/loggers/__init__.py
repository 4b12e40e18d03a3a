"""Loggers: callbacks that carry a run's numbers to a file or a service, and that cannot end the run."""

from crosscoders.training.loggers.base import Logger
from crosscoders.training.loggers.csv_file import CsvLogger
from crosscoders.training.loggers.make import make_loggers
from crosscoders.training.loggers.tensorboard import TensorBoardLogger
from crosscoders.training.loggers.trackio import TrackioLogger
from crosscoders.training.loggers.wandb import WandbLogger

__all__ = ["CsvLogger", "Logger", "TensorBoardLogger", "TrackioLogger", "WandbLogger", "make_loggers"]
