"""The paper's experiments, each with the controls it lacks: one file per experiment, all on one `Study`."""

from crosscoders.experiments.catalog import EXPERIMENTS, experiment_options, run_experiment
from crosscoders.experiments.opening import open_models, open_study
from crosscoders.experiments.plans import bundled_plan, plan_from_toml
from crosscoders.experiments.reproduce import Reproduction, reproduce
from crosscoders.experiments.study import Finding, Material, Prompt, Study
from crosscoders.experiments.text_material import MaterialConfig

__all__ = [
    "EXPERIMENTS",
    "Finding",
    "Material",
    "MaterialConfig",
    "Prompt",
    "Reproduction",
    "Study",
    "bundled_plan",
    "experiment_options",
    "open_models",
    "open_study",
    "plan_from_toml",
    "reproduce",
    "run_experiment",
]
