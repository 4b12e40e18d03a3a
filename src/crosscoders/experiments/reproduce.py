"""Every experiment of the paper in one folder: train, open, run each experiment, write the index page."""

import dataclasses
import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crosscoders._io import atomic_write_json
from crosscoders._typing import typed
from crosscoders.experiments.catalog import EXPERIMENTS, run_experiment
from crosscoders.experiments.opening import open_study
from crosscoders.experiments.page import write_index
from crosscoders.experiments.study import Finding, Study
from crosscoders.experiments.text_material import MaterialConfig
from crosscoders.pipeline.bundled import bundled_sources, demo_corpus, demo_data, is_bundled
from crosscoders.pipeline.config import RunConfig, default_objective
from crosscoders.pipeline.run import run, run_on
from crosscoders.provenance import run_record, write_manifest

_FOLDER_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What to train and which experiments to run on it.

    Args:
        title: Heading of the index page.
        runs: Configuration of each crosscoder by its name; their `out` is replaced.
        experiments: For each experiment the names of the runs that it is done on, in order.
        options: Options of experiments that are not to keep their defaults, by the experiment's name.
        material: Prompts, lexicon and word pairs of a pair of one's own.

    Raises:
        ValueError: No run, an unknown experiment or run, or a run whose name is no folder name.
    """

    title: str
    runs: Mapping[str, RunConfig]
    experiments: Mapping[str, tuple[str, ...]]
    options: Mapping[str, Any] = field(default_factory=dict)
    material: MaterialConfig = field(default_factory=MaterialConfig)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.experiments) - set(EXPERIMENTS))
        strange = sorted({name for names in self.experiments.values() for name in names} - set(self.runs))
        if not self.runs or unknown or strange:
            raise ValueError(
                f"Reproduction: unknown experiments {unknown} (there are {sorted(EXPERIMENTS)}), "
                f"unknown runs {strange} (there are {sorted(self.runs)}; at least one is needed)."
            )
        wrong = [name for name in self.runs if not _FOLDER_NAME.fullmatch(name)]
        if wrong:
            raise ValueError(f"Reproduction: runs name folders; letters, digits, _ and - only, got {wrong}.")


@typed
def reproduce(
    plan: Reproduction, out: str | Path, *, say: Callable[[str], None] | None = None
) -> dict[str, Finding]:
    """Train what the plan names and run its experiments; what is already there is not done again.

    A run counts as done if its folder is complete and was made with the same configuration; an experiment if
    its `finding.json` was made from the same crosscoder with the same options. So an interrupted call goes on
    where it stopped, and a changed option redoes only what depends on it.

    Args:
        plan: Runs and experiments.
        out: Folder of everything; `index.html` shows it.
        say: Gets each line of progress; None for silence.

    Returns:
        Findings by folder.

    Raises:
        ValueError: An experiment cannot be done; what was found until then stays.
        FileExistsError: `out` holds something else.
    """
    folder = Path(out)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "reproduction.json").exists():
        raise FileExistsError(f"{folder} is neither empty nor a reproduction; choose another out folder.")
    plan.material.check_files()
    for config in plan.runs.values():
        is_bundled(config)
    folder.mkdir(parents=True, exist_ok=True)
    tell = say or (lambda text: None)
    work = _Work(plan, folder, tell)
    work.record()
    try:
        for name, config in plan.runs.items():
            work.train(name, config)
        for name in plan.runs:
            work.experiments_on(name)
    finally:
        work.show()
    tell(f"Everything lies in {folder}; open {folder / 'index.html'}.")
    return work.findings


class _Work:
    """One call of `reproduce`: the folder, and what is done so far."""

    def __init__(self, plan: Reproduction, folder: Path, say: Callable[[str], None]) -> None:
        self.plan, self.folder, self.say = plan, folder, say
        self.findings: dict[str, Finding] = {}
        self.skipped: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.n_steps = len(plan.runs) + sum(len(names) for names in plan.experiments.values())
        self.n_begun = 0
        self.started = time.monotonic()

    def record(self) -> None:
        """Say what is done here, before anything is."""
        config = {
            "runs": {name: config.to_dict() for name, config in self.plan.runs.items()},
            "experiments": {name: list(runs) for name, runs in self.plan.experiments.items()},
            "options": {name: dataclasses.asdict(o) for name, o in self.plan.options.items()},
            "material": dataclasses.asdict(self.plan.material),
        }
        seed = next(iter(self.plan.runs.values())).seed
        atomic_write_json(self.folder / "reproduction.json", run_record(config=config, seed=seed, data={}))

    def train(self, name: str, config: RunConfig) -> None:
        """Train one crosscoder, unless its run is complete."""
        at = self.folder / "runs" / name
        config = dataclasses.replace(config, out=str(at))
        state = _state(at, config)
        if state == "complete":
            self._begin(f"run {name}: done before")
            return
        if state == "other":
            self.say(f"      {at} was made with another configuration and is made anew")
            shutil.rmtree(at)
        has_checkpoints = (at / "checkpoints").is_dir() and any((at / "checkpoints").iterdir())
        self._begin(f"run {name}: {'going on with training' if has_checkpoints else 'training'}")
        with self._timed(f"runs/{name}"):
            if is_bundled(config):
                sources = bundled_sources(config)
                corpus = demo_corpus(demo_data(sources, config))
                run_on(sources, corpus, config, resume=has_checkpoints)
            else:
                run(config, resume=has_checkpoints)
            if (at / "checkpoints").is_dir():  # nothing is left to resume
                shutil.rmtree(at / "checkpoints")
                write_manifest(at)

    def experiments_on(self, name: str) -> None:
        """Every experiment of the plan on one run; its models are loaded only if one is still to do."""
        study: Study | None = None
        for experiment, names in self.plan.experiments.items():
            if name not in names:
                continue
            at = f"{experiment}-{name}"
            options = self.plan.options.get(experiment, EXPERIMENTS[experiment].options())
            key = self._key(name, experiment, options)
            done = _finding_of(self.folder / at, key)
            if done is not None:
                self._begin(f"{experiment} on {name}: done before")
                self.findings[at] = done
                continue
            self._begin(f"{experiment} on {name}")
            study = study or open_study(self.folder / "runs" / name, material=self.plan.material)
            lacking = EXPERIMENTS[experiment].lacks(study)
            if lacking:
                self.skipped[at] = lacking
                self.say(f"      skipped: {lacking}")
                continue
            with self._timed(at):
                found = run_experiment(
                    experiment, study, folder=self.folder / at, options=options, made_from=key
                )
            self.findings[at] = found
            self.say(f"      {found.verdict}")

    def show(self) -> None:
        """Write the index page and the manifest of what there is so far."""
        at = {name: self.folder / "runs" / name / "summary.txt" for name in self.plan.runs}
        order = [
            f"{experiment}-{name}" for experiment, names in self.plan.experiments.items() for name in names
        ]
        write_index(
            self.folder,
            title=self.plan.title,
            runs=self.plan.runs,
            summaries={f"runs/{n}": p.read_text(encoding="utf-8") for n, p in at.items() if p.exists()},
            findings={name: self.findings[name] for name in order if name in self.findings},
            skipped=self.skipped,
            seconds=self.seconds,
        )
        write_manifest(self.folder)

    def _begin(self, what: str) -> None:
        self.n_begun += 1
        passed = time.monotonic() - self.started
        self.say(f"[{self.n_begun}/{self.n_steps}] {what} ({passed:.0f} s)")

    def _timed(self, at: str) -> "_Timer":
        return _Timer(self.seconds, at)

    def _key(self, name: str, experiment: str, options: Any) -> dict[str, Any]:
        manifest = json.loads((self.folder / "runs" / name / "manifest.json").read_text(encoding="utf-8"))
        key = {
            "crosscoder_sha256": manifest["files"]["crosscoder/model.safetensors"]["sha256"],
            "options": dataclasses.asdict(options),
            "material": self.plan.material.fingerprint(EXPERIMENTS[experiment].reads),
        }
        return json.loads(json.dumps(key))  # as it will be read back: tuples are lists


class _Timer:
    def __init__(self, seconds: dict[str, float], at: str) -> None:
        self._seconds, self._at = seconds, at

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *error: object) -> None:
        self._seconds[self._at] = time.monotonic() - self._start


def _state(at: Path, config: RunConfig) -> str:
    """What lies in a run's folder: "nothing", this run, "begun" or "complete", or something "other"."""
    if not (at / "run.json").exists():
        return "nothing" if not at.exists() else "other"
    recorded = RunConfig.from_dict(json.loads((at / "run.json").read_text(encoding="utf-8"))["config"])
    objective = config.objective or tuple(default_objective(config.activation_fn))
    wanted = dataclasses.replace(config, objective=objective)
    if dataclasses.replace(recorded, out=wanted.out) != wanted:  # a folder may have been moved
        return "other"
    return "complete" if (at / "manifest.json").exists() else "begun"


def _finding_of(folder: Path, key: Mapping[str, Any]) -> Finding | None:
    if not (folder / "finding.json").exists():
        return None
    values = json.loads((folder / "finding.json").read_text(encoding="utf-8"))
    found = Finding.from_dict(values["finding"])
    return found if values["made_from"] == key and found.is_complete else None
