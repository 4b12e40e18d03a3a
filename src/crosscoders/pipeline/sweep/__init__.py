"""Many crosscoders on one harvest: their configurations, training, table and Pareto figure."""

from crosscoders.pipeline.sweep.result import MemberResult, SweepResult
from crosscoders.pipeline.sweep.sweep import Sweep

__all__ = ["MemberResult", "Sweep", "SweepResult"]
