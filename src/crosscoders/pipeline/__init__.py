"""The main job from two models to a run folder."""

from crosscoders.pipeline.config import DataConfig, RunConfig
from crosscoders.pipeline.run import Run, fit_crosscoder, run, run_on

__all__ = ["DataConfig", "Run", "RunConfig", "fit_crosscoder", "run", "run_on"]
