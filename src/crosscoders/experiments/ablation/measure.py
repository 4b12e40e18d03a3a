"""The forwards behind the ablation experiment: every edit and every control on one category's occurrences."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.experiments.study import Study
from crosscoders.interventions.ablation.effects import (
    MEASURES,
    AblationEffects,
    LatentEdit,
    TargetScores,
    ablation_effects,
)
from crosscoders.interventions.ablation.latent_sets import (
    MatchedSets,
    identity_donors,
    matched_random_sets,
    shuffled_identity,
    target_energy,
)
from crosscoders.interventions.ablation.occurrences import Occurrences

ABLATED, RANDOM, SHUFFLED = "ablated", "random, matched", "shuffled identity"
NORM_MATCHED, REPLACED = "norm-matched", "replacement"
RECONSTRUCTION = "reconstruction"  # replacement of an empty set: the baseline of `REPLACED`
SIZE_BAND = (0.8, 1.25)  # ratios of mean ||edit||/||h|| within which a control is comparable with the set


@dataclass(frozen=True, kw_only=True)
class AblationOptions:
    """What the ablation experiment does; on the bundled pair the defaults take two minutes on one core.

    Args:
        nrn_column: Which NRN of the table of latents; "nrn_l1" is the paper's.
        nrn_above: Latents above it are ablated.
        top_percents: Of these only the most frequent, in percent.
        of: Most frequent among all latents, or among those above the threshold.
        n_occurrences: Target tokens per category; where there are fewer, all.
        n_random_sets: Random control sets, and shufflings of identity, per set and category.
        n_nearest: Candidates among which each random partner is drawn.
        max_match_ratio: Largest acceptable ratio of frequency and of energy (in the source in which the
            control is compared) between partners.
        with_replacement: Also replace the whole stream by the reconstruction without the set.
        positions: Edit at all positions before the target, or only where it is read.
        batch_size: Occurrences that go through a model together.
        seed: Seed of occurrences, controls and intervals.

    Raises:
        ValueError: A number out of range, or percentages that are not ascending.
    """

    nrn_column: str = "nrn_l1"
    nrn_above: int | float = 0.5
    top_percents: tuple[int | float, ...] = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
    of: Literal["all", "thresholded"] = "all"
    n_occurrences: int = 100
    n_random_sets: int = 5
    n_nearest: int = 5
    max_match_ratio: int | float = 4.0
    with_replacement: bool = True
    positions: Literal["all", "target"] = "all"
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "top_percents", tuple(float(percent) for percent in self.top_percents))
        for name in ("n_occurrences", "n_random_sets", "n_nearest", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"AblationOptions: {name} must be at least 1, got {getattr(self, name)}.")
        ascending = sorted(set(self.top_percents))
        if (
            not ascending
            or list(self.top_percents) != ascending
            or not 0 < ascending[0] <= ascending[-1] <= 100
        ):
            raise ValueError(
                "AblationOptions: top_percents must ascend, above 0 and at most 100, got "
                f"{self.top_percents}."
            )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Everything that was run on one category.

    Args:
        occurrences: Its targets.
        energy: `target_energy` of its targets.
        effects: Scores per edit; an edit's name is its kind, percentage, draw and, if need be, source.
        matches: How well the random controls match as drawn, by percentage and source.
        n_draws: Random controls, and shufflings, that were asked for per percentage.
    """

    occurrences: Occurrences
    energy: Tensor
    effects: AblationEffects
    matches: Mapping[tuple[float, str], MatchedSets]
    n_draws: int

    def made(self, kind: str, percent: float, source: str) -> dict[int | None, str]:
        """Names of a kind's edits in a source by draw; a control for which no latent was found has none."""
        draws = range(self.n_draws) if kind in (RANDOM, SHUFFLED) else (None,)
        names = {draw: edit_name(kind, percent, draw=draw, source=source) for draw in draws}
        return {draw: name for draw, name in names.items() if source in self.effects.edited.get(name, {})}

    def counting(self, kind: str, percent: float, source: str) -> list[str]:
        """Those edits that the set is judged by: of a drawn control the comparable draws, if they are most.

        A draw is comparable if its mean relative size lies within `SIZE_BAND` of the set's.
        """
        made = self.made(kind, percent, source)
        if kind not in (RANDOM, SHUFFLED):
            return list(made.values())
        counting = [name for name in made.values() if is_comparable(self.size_ratio(name, percent, source))]
        return counting if 2 * len(counting) > self.n_draws else []

    def names(self, kind: str, percent: float, source: str) -> list[str]:
        """Those edits that are shown: the ones that count, or all that were made where none does."""
        return self.counting(kind, percent, source) or list(self.made(kind, percent, source).values())

    def kinds(self, source: str) -> list[str]:
        """Kinds of edit that are made in a source; a drawn control is one even where no draw was possible."""
        made = {name.split(" @ ")[0] for name, scores in self.effects.edited.items() if source in scores}
        made |= {RANDOM, SHUFFLED}
        return [kind for kind in (ABLATED, RANDOM, SHUFFLED, NORM_MATCHED, REPLACED) if kind in made]

    def before(self, kind: str, source: str) -> TargetScores:
        """What a kind's changes are counted from: the unedited model, or its reconstruction unablated."""
        return self.effects.edited[RECONSTRUCTION][source] if kind == REPLACED else self.effects.clean[source]

    def after(self, kind: str, percent: float, source: str) -> TargetScores | None:
        """Scores with a kind of edit, the mean over the draws that are shown; None without one."""
        scores = [self.effects.edited[name][source] for name in self.names(kind, percent, source)]
        if not scores:
            return None
        return TargetScores(**{m: torch.stack([getattr(s, m) for s in scores]).mean(dim=0) for m in MEASURES})

    def change(self, kind: str, percent: float, source: str) -> TargetScores | None:
        """`after` minus `before`."""
        after = self.after(kind, percent, source)
        return None if after is None else after.minus(self.before(kind, source))

    def mean_size(self, kind: str, percent: float, source: str) -> float:
        """Mean ||edit|| / ||h|| of a kind's edits that are shown; NaN without any."""
        names = self.names(kind, percent, source)
        sizes = [self.effects.relative_size[name][source] for name in names]
        return float(torch.stack(sizes).mean()) if sizes else math.nan

    def size_ratio(self, name: str, percent: float, source: str) -> float:
        """Mean relative size of one edit over that of the set's ablation in the same source."""
        own = self.mean_size(ABLATED, percent, source)
        return float(self.effects.relative_size[name][source].mean()) / own if own > 0 else math.nan


def is_comparable(size_ratio: float) -> bool:
    """Whether an edit is about as large as the one that it is compared with; False if undefined."""
    return SIZE_BAND[0] <= size_ratio <= SIZE_BAND[1]


def edit_name(kind: str, percent: float, *, draw: int | None = None, source: str | None = None) -> str:
    """Name of an edit among those of a category; random controls are drawn for each source apart."""
    parts = [kind, f"{percent:g}", *([] if draw is None else [str(draw)])]
    return " @ ".join([*parts, source] if kind == RANDOM and source is not None else parts)


@typed
def measure_category(
    study: Study,
    options: AblationOptions,
    sets: Mapping[float, Tensor],
    occurrences: Occurrences,
    *,
    generator: torch.Generator,
) -> Measured:
    """Ablate every set and its controls in both models on one category's occurrences.

    Random latents are drawn for each source apart, alike in frequency and in energy in that source, and run
    in that source alone: latents of high NRN have few partners that are like them in both. Random and
    shuffled controls are then rescaled at every token to the size of the set's own edit; where none of a
    control's latents fires there is nothing to rescale, and its token stays unedited.

    Args:
        study: A run of two models.
        options: How.
        sets: Latents by percentage, none empty.
        occurrences: The category's targets.
        generator: Source of the controls.
    """
    text, frequency = study.corpus.held_out, study.latents["frequency"]
    energy = target_energy(study.crosscoder, study.sources, text, occurrences, batch_size=options.batch_size)
    matches: dict[tuple[float, str], MatchedSets] = {}
    edits: dict[str, LatentEdit] = {}
    for percent, latents in sets.items():
        for at, source in enumerate(study.crosscoder.sources):
            matches[percent, source.name] = matched_random_sets(
                latents,
                frequency=frequency,
                energy=energy[:, at],
                n_draws=options.n_random_sets,
                generator=generator,
                n_nearest=options.n_nearest,
                max_ratio=options.max_match_ratio,
            )
            draws = matches[percent, source.name].draws
            edits |= dict(_random_edits(percent, latents, draws, source=source.name))
        edits |= dict(_own_edits(study, options, percent, latents, generator))
    if options.with_replacement:
        nothing = torch.zeros(0, dtype=torch.int64)
        edits[RECONSTRUCTION] = LatentEdit(latents=nothing, mode="replacement")
    effects = ablation_effects(
        study.crosscoder,
        study.sources,
        text,
        occurrences,
        edits,
        positions=options.positions,
        where=study.corpus.kept(text, study.config.data),
        batch_size=options.batch_size,
    )
    return Measured(
        occurrences=occurrences,
        energy=energy,
        effects=effects,
        matches=matches,
        n_draws=options.n_random_sets,
    )


def _random_edits(
    percent: float, latents: Tensor, draws: tuple[Tensor, ...], *, source: str
) -> Iterator[tuple[str, LatentEdit]]:
    """Edits of the random latents; a draw without any is no control, and makes none."""
    for draw, others in enumerate(draws):
        if len(others):
            edit = LatentEdit(latents=others, size_of=latents, sources=(source,))
            yield edit_name(RANDOM, percent, draw=draw, source=source), edit


def _own_edits(
    study: Study, options: AblationOptions, percent: float, latents: Tensor, generator: torch.Generator
) -> Iterator[tuple[str, LatentEdit]]:
    """Edits with the set's own codes: ablated, along other directions, at another size, by replacement."""
    yield edit_name(ABLATED, percent), LatentEdit(latents=latents)
    frequency = study.latents["frequency"]
    if len(identity_donors(study.crosscoder, latents, frequency=frequency)):
        for draw in range(options.n_random_sets):
            rows = shuffled_identity(study.crosscoder, latents, frequency=frequency, generator=generator)
            edit = LatentEdit(latents=latents, decoder=rows, size_of=latents)
            yield edit_name(SHUFFLED, percent, draw=draw), edit
    rescaled = LatentEdit(latents=latents, norm_from=study.distilled, sources=(study.base,))
    yield edit_name(NORM_MATCHED, percent), rescaled
    if options.with_replacement:
        yield edit_name(REPLACED, percent), LatentEdit(latents=latents, mode="replacement")
