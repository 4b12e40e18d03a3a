"""The experiments by name: their options, what they need, and how to run one on a study."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crosscoders._typing import typed
from crosscoders.experiments.ablation import AblationOptions, ablation_experiment
from crosscoders.experiments.annotation import AnnotationOptions, annotation_experiment
from crosscoders.experiments.geometry import GeometryOptions, geometry_experiment
from crosscoders.experiments.norms import NormsOptions, norms_experiment
from crosscoders.experiments.steering import SteeringOptions, steering_experiment
from crosscoders.experiments.study import Finding, Study
from crosscoders.pipeline.config import build_config


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment.

    Args:
        options: Its dataclass of options.
        run: What runs it: `run(study, options, folder=...)`.
        lacks: What of its material a study lacks, in words; empty if nothing.
        reads: Settings of `MaterialConfig` that its result depends on.
    """

    options: type
    run: Callable[..., Finding]
    lacks: Callable[[Study], str] = lambda study: ""
    reads: tuple[str, ...] = ()


def _no_markers(study: Study) -> str:
    is_empty = not any(bool(mask.any()) for mask in study.material.markers.values())
    return "no word of any category occurs in the held-out text" if is_empty else ""


def _no_prompts(study: Study) -> str:
    return "" if study.material.prompts else "the material names no prompts"


def _no_word_tasks(study: Study) -> str:
    return "" if study.material.word_tasks else "the material names no word pairs"


_ANSWERS = ("n_prompts", "grader", "chat", "max_new_tokens", "temperature", "steer_after")
EXPERIMENTS: dict[str, Experiment] = {
    "norms": Experiment(options=NormsOptions, run=norms_experiment),
    "annotation": Experiment(
        options=AnnotationOptions, run=annotation_experiment, reads=("lexicon", "think")
    ),
    "ablation": Experiment(
        options=AblationOptions, run=ablation_experiment, lacks=_no_markers, reads=("lexicon",)
    ),
    "steering": Experiment(
        options=SteeringOptions,
        run=steering_experiment,
        lacks=_no_prompts,
        reads=("prompts", "lexicon", *_ANSWERS),
    ),
    "geometry": Experiment(
        options=GeometryOptions,
        run=geometry_experiment,
        lacks=_no_word_tasks,
        reads=("word_pairs", "word_tasks"),
    ),
}


@typed
def experiment_options(name: str, values: Mapping[str, Any]) -> Any:
    """The options of an experiment from plain values.

    Args:
        name: One of `EXPERIMENTS`.
        values: Options by name; the rest keep their defaults.

    Returns:
        The options object of that experiment.

    Raises:
        ValueError: No such experiment, an unknown option, or a value of the wrong kind.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"there is no experiment {name!r}; there are {sorted(EXPERIMENTS)}.")
    return build_config(EXPERIMENTS[name].options, values, where=f"[{name}]")


@typed
def run_experiment(
    name: str,
    study: Study,
    *,
    folder: str | Path,
    options: Any = None,
    made_from: Mapping[str, Any] | None = None,
) -> Finding:
    """Run one experiment and write its folder: figures, tables, `summary.txt` and `finding.json`.

    Args:
        name: One of `EXPERIMENTS`.
        study: An opened run.
        folder: Where everything goes; created if need be.
        options: The experiment's own dataclass of options; its defaults if None.
        made_from: What `finding.json` says that the finding was made from; the options if None.

    Returns:
        The finding.

    Raises:
        ValueError: No such experiment, options of another one, or a study without the material for it.

    Example:
        study = open_study("runs/demo")
        print(run_experiment("ablation", study, folder="runs/demo/ablation").verdict)
    """
    options = experiment_options(name, {}) if options is None else options
    if name not in EXPERIMENTS or not isinstance(options, EXPERIMENTS[name].options):
        raise ValueError(
            f"run_experiment {name!r}: got options of type {type(options).__name__}; "
            f"the experiments are {sorted(EXPERIMENTS)}."
        )
    experiment = EXPERIMENTS[name]
    lacking = experiment.lacks(study)
    if lacking:
        raise ValueError(f"run_experiment {name!r}: {lacking}; see docs/experiments.md, [material].")
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    (out / "finding.json").unlink(missing_ok=True)  # incomplete from now on
    finding = experiment.run(study, options, folder=out)
    finding.write(out, made_from={"options": asdict(options)} if made_from is None else made_from)
    return finding
