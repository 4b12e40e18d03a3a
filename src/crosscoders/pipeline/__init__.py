"""The main job from two models to a run folder."""

from crosscoders.pipeline.config import DataConfig, RunConfig
from crosscoders.pipeline.fit import fit_crosscoder
from crosscoders.pipeline.run import Run, run, run_on

__all__ = ["DataConfig", "Run", "RunConfig", "fit_crosscoder", "run", "run_on"]
