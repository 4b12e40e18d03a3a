"""Feature geometry: parallelograms of word pairs in both models, and what else differs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from crosscoders._typing import typed
from crosscoders.experiments.geometry.structure import Structure, held_out_covariance, structure_of
from crosscoders.experiments.study import Finding, Study
from crosscoders.geometry import SCALES, GeometryProbe, LossDifference, ParallelogramResult
from crosscoders.geometry.parallelogram import Scale
from crosscoders.harvest import ModelSources, load_sources
from crosscoders.report.figures.geometry import parallelogram_losses, structure_curves
from crosscoders.report.tables import aligned, write_csv
from crosscoders.zoo import model_path

CONTROL = "control"
_ZOO = "zoo:"
_CLAIM = (
    "word pairs form better parallelograms in the base model at 1.5B, and in the distilled model, in every "
    "class of function, at 14B."
)


@dataclass(frozen=True, kw_only=True)
class GeometryOptions:
    """Options of the geometry experiment; with the defaults it takes about a minute on the bundled pair.

    Args:
        n_components: Principal components in which parallelograms are measured.
        scale: Scale of the loss in the figure and the verdict; the tables have all four.
        pca: "pooled" fits one basis per model on the words of all tasks, "task" one per task.
        prefix: Text before every word; empty for the bare word.
        n_quadruples: Quadruples per task.
        n_permutations: Shuffles of each null.
        n_resamples: Bootstrap samples of word pairs.
        confidence: Coverage of the intervals.
        structure_tokens: About how many held-out tokens the structure measures read.
        n_axes: Leading principal axes whose subspaces are compared.
        control_model: Folder or Hub id of the base trained on without reasoning traces, a control; empty for
            the bundled pair's own, and none for other pairs.
        seed: Seed of everything random.
    """

    n_components: int = 20
    scale: Scale = "task"
    pca: Literal["pooled", "task"] = "pooled"
    prefix: str = ""
    n_quadruples: int = 10_000
    n_permutations: int = 999
    n_resamples: int = 1_000
    confidence: float = 0.95
    structure_tokens: int = 50_000
    n_axes: int = 20
    control_model: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "n_components",
            "n_quadruples",
            "n_permutations",
            "n_resamples",
            "structure_tokens",
            "n_axes",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"GeometryOptions: {name} must be at least 1, got {getattr(self, name)}.")
        if self.scale not in SCALES or self.pca not in ("pooled", "task") or not 0 < self.confidence < 1:
            raise ValueError(
                f"GeometryOptions: scale must be one of {SCALES}, pca 'pooled' or 'task' and confidence "
                f"inside (0, 1); got {self.scale!r}, {self.pca!r} and {self.confidence}."
            )


@typed
def geometry_experiment(study: Study, options: GeometryOptions, *, folder: Path) -> Finding:
    """Parallelogram loss by task in both models, beside shuffled pairs and a control; structure measures.

    The control is the base trained on without traces, where there is one: what further training alone does
    to the geometry.

    Args:
        study: An opened run, with word pairs in its material.
        options: What to measure.
        folder: Where figures and tables go.

    Returns:
        Which model is better structured, by task, with intervals over word pairs.

    Raises:
        ValueError: No word pairs, too few known words, or models without a tokenizer.
    """
    if not study.material.word_tasks:
        raise ValueError("geometry_experiment: the material names no word pairs; give it word_tasks.")
    sources = _with_control(study, options)
    probe = _probe(sources, options)
    words = probe.read(study.material.word_tasks)
    results: dict[Scale, ParallelogramResult] = {
        scale: probe.parallelogram(words, scale=scale) for scale in SCALES
    }
    comparisons = _Comparisons(results, pairs=_pairs(study, sources), chosen=options.scale)
    covariance = held_out_covariance(
        sources, study.corpus, study.config.data, n_tokens=options.structure_tokens
    )
    structure = structure_of(
        covariance,
        study.crosscoder,
        fired=study.latents["frequency"] > 0,
        n_axes=options.n_axes,
        generator=torch.Generator().manual_seed(options.seed),
    )
    _write(folder, results, comparisons, structure)
    chosen = results[options.scale]
    return Finding(
        name="geometry",
        title="Feature geometry: parallelograms of word pairs, and structure",
        claim=_CLAIM,
        verdict=_verdict(chosen, comparisons, study),
        lines=tuple(_lines(chosen, comparisons, structure, covariance.n_rows)),
        figures=("parallelogram", "structure"),
        tables=(
            "parallelogram.csv",
            "parallelogram_difference.csv",
            "structure.csv",
            "structure_variance.csv",
            "structure_nearest_cosine.csv",
        ),
    )


def _with_control(study: Study, options: GeometryOptions) -> ModelSources:
    """The study's models, and the control where there is one."""
    label = study.config.models()["base"].path
    if options.control_model:
        path = options.control_model
    elif label.startswith(_ZOO):
        path = str(model_path(label.removeprefix(_ZOO).split("/")[0], "null"))
    else:
        return study.sources
    hooks = {source.name: source.hook_name for source in study.sources.sources}
    hooks[CONTROL] = hooks[study.base]
    models = {**study.sources.models, CONTROL: path}
    as_they_are = dict.fromkeys(study.sources.models)
    return load_sources(
        models,
        hook_name=hooks,
        tokenizer=study.sources.tokenizer,
        dtype={**as_they_are, CONTROL: study.config.models()["base"].torch_dtype},
        device={**as_they_are, CONTROL: study.config.device},
        id_policy=study.sources.id_policy,
        onto=study.config.device,
    )


def _probe(sources: ModelSources, options: GeometryOptions) -> GeometryProbe:
    return GeometryProbe(
        sources,
        n_components=options.n_components,
        scale=options.scale,
        pca=options.pca,
        prefix=options.prefix,
        n_quadruples=options.n_quadruples,
        n_permutations=options.n_permutations,
        n_resamples=options.n_resamples,
        confidence=options.confidence,
        seed=options.seed,
    )


def _pairs(study: Study, sources: ModelSources) -> list[tuple[str, str]]:
    pairs = [(study.distilled, study.base)]
    return [*pairs, (CONTROL, study.base), (study.distilled, CONTROL)] if CONTROL in sources.models else pairs


class _Comparisons:
    """Differences of the models by pair of them, scale, and whether over the null."""

    def __init__(
        self, results: Mapping[Scale, ParallelogramResult], *, pairs: Sequence[tuple[str, str]], chosen: Scale
    ) -> None:
        self.chosen: Scale = chosen
        self.labels = [f"{first} - {second}" for first, second in pairs]
        self.all = {
            (f"{first} - {second}", scale, relative): result.difference(first, second, relative=relative)
            for first, second in pairs
            for scale, result in results.items()
            for relative in (False, True)
        }

    def of_chosen_scale(self, *, relative: bool) -> dict[str, tuple[LossDifference, ...]]:
        return {
            label: difference.tasks
            for (label, scale, is_relative), difference in self.all.items()
            if scale == self.chosen and is_relative == relative
        }

    def counts(self, label: str, scale: Scale, *, relative: bool) -> tuple[int, int]:
        """In how many tasks the first, and the second, is better structured: the interval leaves zero out."""
        tasks = self.all[label, scale, relative].tasks
        return sum(t.high < 0 for t in tasks), sum(t.low > 0 for t in tasks)

    def has(self, label: str) -> bool:
        return label in self.labels

    def rows(self) -> list[dict[str, Any]]:
        return [
            {"scale": scale, **row}
            for (_, scale, _), difference in self.all.items()
            for row in difference.to_rows()
        ]


def _write(
    folder: Path,
    results: Mapping[Scale, ParallelogramResult],
    comparisons: _Comparisons,
    structure: Structure,
) -> None:
    write_csv(folder / "parallelogram.csv", [row for result in results.values() for row in result.to_rows()])
    write_csv(folder / "parallelogram_difference.csv", comparisons.rows())
    write_csv(folder / "structure.csv", structure.rows)
    write_csv(folder / "structure_variance.csv", _long(structure.shares, "component", "share", first=1))
    write_csv(folder / "structure_nearest_cosine.csv", _long(structure.nearest, "percent", "cosine", first=0))
    parallelogram_losses(
        results[comparisons.chosen].scores,
        comparisons.of_chosen_scale(relative=False),
        comparisons.of_chosen_scale(relative=True),
        folder / "parallelogram.png",
    )
    structure_curves(structure.shares, structure.nearest, folder / "structure.png")


def _long(curves: Mapping[str, Sequence[float]], x: str, y: str, *, first: int) -> list[dict[str, Any]]:
    return [
        {"of": name, x: at, y: value}
        for name, values in curves.items()
        for at, value in enumerate(values, start=first)
    ]


def _verdict(result: ParallelogramResult, comparisons: _Comparisons, study: Study) -> str:
    base, distilled, n_tasks = study.base, study.distilled, len(result.tasks)
    main, control = f"{distilled} - {base}", f"{distilled} - {CONTROL}"
    better, worse = comparisons.counts(main, comparisons.chosen, relative=False)
    share = comparisons.counts(main, comparisons.chosen, relative=True)
    shown = {
        name: sum(result.score(t, name).p_value < 0.05 for t in result.tasks) for name in (base, distilled)
    }
    sentences = [
        f"{_pattern(better, worse, n_tasks)}: at scale {comparisons.chosen!r} the {distilled} model is "
        f"better structured in {better} of {n_tasks} tasks and the {base} in {worse}; as a share of the loss "
        f"of shuffled pairs, which a mere change of spread leaves alone, in {share[0]} and {share[1]}.",
        f"Pairs beat shuffled ones (p < 0.05) in {shown[base]} tasks in the {base} and in {shown[distilled]} "
        f"in the {distilled} model.",
    ]
    if comparisons.has(control):
        beyond = [comparisons.counts(control, comparisons.chosen, relative=r) for r in (False, True)]
        sentences.append(
            f"Against the control, the {base} trained on without traces, it is better in {beyond[0][0]} and "
            f"worse in {beyond[0][1]} ({beyond[1][0]} and {beyond[1][1]} as a share)."
        )
    return " ".join(sentences)


def _pattern(better: int, worse: int, n_tasks: int) -> str:
    if better == n_tasks:
        return "The paper's finding at 14B shows"
    if worse == n_tasks:
        return "The paper's finding at 1.5B shows, in every task"
    if worse > better:
        return "Leans to the paper's finding at 1.5B"
    if better > worse:
        return "Leans to the paper's finding at 14B, but not in every task"
    return "Neither of the paper's findings shows"


def _lines(
    result: ParallelogramResult, comparisons: _Comparisons, structure: Structure, n_tokens: int
) -> list[str]:
    head = ("task", "model", "loss", "interval", "shuffled", "p", "share", "pairs", "trivial")
    scores = [
        (s.task, s.source, f"{s.loss:.3f}", f"{s.low:.3f} to {s.high:.3f}", f"{s.null_mean:.3f}")
        + (f"{s.p_value:.3f}", f"{s.relative:.3f}", str(s.n_pairs), str(s.n_trivial + s.n_degenerate))
        for s in result.scores
    ]
    return [
        f"Parallelogram loss, scale {comparisons.chosen!r}; share: loss / loss of shuffled pairs; trivial: "
        "quadruples dropped.",
        *aligned([head, *scores]),
        *(f"Skipped: {reason}." for reason in result.skipped.values()),
        *_difference_lines(comparisons, n_tasks=len(result.tasks)),
        "",
        f"Structure of activations ({n_tokens} held-out tokens) and of the decoder vectors that fire.",
        *aligned([("measure", "of", "value", "chance"), *_structure_cells(structure)]),
    ]


def _difference_lines(comparisons: _Comparisons, *, n_tasks: int) -> list[str]:
    lines: list[str] = []
    for relative, title in ((False, "loss"), (True, "loss / loss of shuffled pairs")):
        head = (f"difference of {title}", *comparisons.labels)
        by_label = comparisons.of_chosen_scale(relative=relative)
        cells = [
            (
                entries[0].task,
                *(f"{d.estimate:+.3f} [{d.low:+.3f}, {d.high:+.3f}]" for d in entries),
            )
            for entries in zip(*by_label.values(), strict=True)
        ]
        lines += ["", *aligned([head, *cells])]
    scales = [
        (scale, *(_counted(comparisons, label, scale) for label in comparisons.labels)) for scale in SCALES
    ]
    head = (f"first / second better, of {n_tasks} tasks", *comparisons.labels)
    return [*lines, "", *aligned([head, *scales])]


def _counted(comparisons: _Comparisons, label: str, scale: Scale) -> str:
    better, worse = comparisons.counts(label, scale, relative=False)
    return f"{better} / {worse}"


def _structure_cells(structure: Structure) -> list[tuple[str, ...]]:
    return [
        (row["measure"], row["of"], f"{row['value']:.3f}", f"{row['chance']:.3f}") for row in structure.rows
    ]
