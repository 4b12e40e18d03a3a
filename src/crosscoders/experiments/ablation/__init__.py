"""The paper's ablation curve with its controls: measure, tabulate, judge."""

from crosscoders.experiments.ablation.experiment import ablation_experiment
from crosscoders.experiments.ablation.measure import AblationOptions

__all__ = ["AblationOptions", "ablation_experiment"]
