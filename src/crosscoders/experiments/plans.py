"""What `crosscoders reproduce` does: the bundled pair's plan, and plans from a file."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

from crosscoders._typing import typed
from crosscoders.activation_fns import ReLU
from crosscoders.experiments.catalog import EXPERIMENTS, experiment_options
from crosscoders.experiments.reproduce import Reproduction
from crosscoders.experiments.text_material import MaterialConfig
from crosscoders.losses import DecoderNormL1, Reconstruction
from crosscoders.pipeline.bundled import FAMILY, demo_config
from crosscoders.pipeline.config import RunConfig, build_config
from crosscoders.training import TrainerConfig

# The paper's crosscoder screens, is annotated and ablated as in the paper; the field's does the same with a
# recipe that makes fewer artifacts, and steers.
_ON_EACH_RUN = {
    "norms": ("paper", "field"),
    "annotation": ("paper", "field"),
    "ablation": ("paper", "field"),
    "steering": ("field",),
    "geometry": ("paper",),
}


@typed
def bundled_plan(pair: str = FAMILY, *, seed: int = 0) -> Reproduction:
    """All experiments on a bundled pair.

    Two crosscoders are trained: `paper` is the paper's recipe (ReLU, decoder-norm L1 with weight 2 and its
    warm-up, constant learning rate with decay, half depth), `field` the demo's BatchTopK. The bundled run is
    350 times shorter than the paper's, so the paper's batch (1024, as in later work with its recipe) and
    learning rate (1e-3) are set for that; objective, schedule and hook are the paper's.

    Args:
        pair: "tiny-reasoner".
        seed: Seed of both crosscoders and their data.

    Returns:
        The plan, for `reproduce`.

    Raises:
        ValueError: No such pair.
    """
    if pair != FAMILY:
        raise ValueError(
            f"reproduce: the bundled pair is {FAMILY!r}, got {pair!r}; other pairs need a config."
        )
    field = demo_config("", seed=seed)
    paper = dataclasses.replace(
        field,
        hook_name="half",
        activation_fn=ReLU(),
        objective=(Reconstruction(), DecoderNormL1(weight=2.0, warmup_fraction=0.05)),
        data=dataclasses.replace(field.data, batch_tokens=1024),
        training=TrainerConfig(lr=1e-3, warmup_fraction=0.0, decay_fraction=0.2, log_every_steps=50),
    )
    every = 200  # steps between checkpoints, so that an interrupted call loses little
    runs = {"paper": paper, "field": field}
    return Reproduction(
        title=f"Distillation in {pair}, experiment by experiment",
        runs={
            name: dataclasses.replace(
                config, training=dataclasses.replace(config.training, checkpoint_every_steps=every)
            )
            for name, config in runs.items()
        },
        experiments=_ON_EACH_RUN,
    )


@typed
def plan_from_toml(path: str | Path) -> Reproduction:
    """A plan for a pair of one's own.

    The file holds `title`, one table `[runs.NAME]` per crosscoder (the keys of a run's configuration
    without `out`; `preset` names a recipe), `[material]`, and for each experiment a table with its options
    and `runs`, the names of the runs to do it on; without `runs` it is done on every run.

    Args:
        path: TOML file.

    Returns:
        The plan, for `reproduce`.

    Raises:
        ValueError: Not TOML, or an unknown key, run or value; the message names the file.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        return _plan(values)
    except (tomllib.TOMLDecodeError, ValueError, TypeError) as err:
        raise ValueError(f"{path}: {err}") from err


@typed
def options_from_toml(path: str | Path, experiment: str) -> tuple[MaterialConfig, Any]:
    """The material and one experiment's options from a file such as `plan_from_toml` reads.

    Args:
        path: TOML file; other tables in it are left alone.
        experiment: Name of the experiment.

    Raises:
        ValueError: Not TOML, or an unknown key or value in these two tables.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        table = {key: value for key, value in values.get(experiment, {}).items() if key != "runs"}
        material = build_config(MaterialConfig, values.get("material", {}), where="[material]")
        return material, experiment_options(experiment, table)
    except (tomllib.TOMLDecodeError, ValueError, TypeError) as err:
        raise ValueError(f"{path}: {err}") from err


def _plan(values: dict[str, Any]) -> Reproduction:
    known = {"title", "runs", "material", *EXPERIMENTS}
    unknown = sorted(set(values) - known)
    if unknown or "runs" not in values:
        raise ValueError(f"unknown keys {unknown}; the keys are {sorted(known)}, and runs is needed.")
    runs = {name: RunConfig.from_dict({**table, "out": ""}) for name, table in values["runs"].items()}
    sections = {name: dict(values.get(name, {})) for name in EXPERIMENTS}
    experiments = {name: tuple(table.pop("runs", tuple(runs))) for name, table in sections.items()}
    return Reproduction(
        title=values.get("title", "What distillation changed, experiment by experiment"),
        runs=runs,
        experiments=experiments,
        options={name: experiment_options(name, table) for name, table in sections.items() if table},
        material=build_config(MaterialConfig, values.get("material", {}), where="[material]"),
    )
