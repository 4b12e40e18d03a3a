"""The forwards behind the ablation experiment: every edit and every control on one category's occurrences."""

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
    matched_random_sets,
    shuffled_identity,
    target_energy,
)
from crosscoders.interventions.ablation.occurrences import Occurrences

ABLATED, RANDOM, SHUFFLED = "ablated", "random, matched", "shuffled identity"
NORM_MATCHED, REPLACED = "norm-matched", "replacement"
RECONSTRUCTION = "reconstruction"  # replacement of an empty set: the baseline of `REPLACED`


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
        max_match_ratio: Largest acceptable ratio of frequency and of energy between partners.
        with_replacement: Also replace the whole stream by the reconstruction without the set.
        positions: Edit at all positions before the target, or only where it is read.
        batch_size: Occurrences that go through a model together.
        seed: Seed of occurrences, controls and intervals.

    Raises:
        ValueError: A number out of range, or percentages that are not ascending.
    """

    nrn_column: str = "nrn_l1"
    nrn_above: float = 0.5
    top_percents: tuple[int | float, ...] = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
    of: Literal["all", "thresholded"] = "all"
    n_occurrences: int = 100
    n_random_sets: int = 5
    n_nearest: int = 5
    max_match_ratio: float = 4.0
    with_replacement: bool = True
    positions: Literal["all", "target"] = "all"
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
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
        effects: Scores per edit; an edit's name is its kind, percentage and draw.
        matches: How well the random controls match, by percentage.
        n_draws: Random controls, and shufflings, per percentage.
    """

    occurrences: Occurrences
    effects: AblationEffects
    matches: Mapping[float, MatchedSets]
    n_draws: int

    def names(self, kind: str, percent: float) -> list[str]:
        """Names of a kind's edits: one per draw for controls that are drawn."""
        draws = range(self.n_draws) if kind in (RANDOM, SHUFFLED) else (None,)
        return [edit_name(kind, percent, draw) for draw in draws]

    def kinds(self, source: str) -> list[str]:
        """Kinds of edit that were made in a source."""
        made = {name.split(" @ ")[0] for name, scores in self.effects.edited.items() if source in scores}
        return [kind for kind in (ABLATED, RANDOM, SHUFFLED, NORM_MATCHED, REPLACED) if kind in made]

    def before(self, kind: str, source: str) -> TargetScores:
        """What a kind's changes are counted from: the unedited model, or its reconstruction unablated."""
        return self.effects.edited[RECONSTRUCTION][source] if kind == REPLACED else self.effects.clean[source]

    def after(self, kind: str, percent: float, source: str) -> TargetScores:
        """Scores with a kind of edit, the mean over its draws."""
        scores = [self.effects.edited[name][source] for name in self.names(kind, percent)]
        return TargetScores(**{m: torch.stack([getattr(s, m) for s in scores]).mean(dim=0) for m in MEASURES})

    def change(self, kind: str, percent: float, source: str) -> TargetScores:
        """`after` minus `before`."""
        return self.after(kind, percent, source).minus(self.before(kind, source))

    def relative_size(self, kind: str, percent: float, source: str) -> Tensor:
        """Size of a kind of edit, the mean over its draws."""
        sizes = [self.effects.relative_size[name][source] for name in self.names(kind, percent)]
        return torch.stack(sizes).mean(dim=0)


def edit_name(kind: str, percent: float, draw: int | None = None) -> str:
    """Name of an edit among those of a category."""
    return f"{kind} @ {percent:g}" + ("" if draw is None else f" @ {draw}")


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

    Args:
        study: A run of two models.
        options: How.
        sets: Latents by percentage, none empty.
        occurrences: The category's targets.
        generator: Source of the controls.
    """
    text, frequency = study.corpus.held_out, study.latents["frequency"]
    energy = target_energy(study.crosscoder, study.sources, text, occurrences, batch_size=options.batch_size)
    matches: dict[float, MatchedSets] = {}
    edits: dict[str, LatentEdit] = {}
    for percent, latents in sets.items():
        matches[percent] = matched_random_sets(
            latents,
            frequency=frequency,
            energy=energy,
            n_draws=options.n_random_sets,
            generator=generator,
            n_nearest=options.n_nearest,
            max_ratio=options.max_match_ratio,
        )
        edits |= dict(_edits(study, options, percent, latents, matches[percent].draws, generator))
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
    return Measured(occurrences=occurrences, effects=effects, matches=matches, n_draws=options.n_random_sets)


def _edits(
    study: Study,
    options: AblationOptions,
    percent: float,
    latents: Tensor,
    controls: tuple[Tensor, ...],
    generator: torch.Generator,
) -> Iterator[tuple[str, LatentEdit]]:
    yield edit_name(ABLATED, percent), LatentEdit(latents=latents)
    for draw, others in enumerate(controls):
        rows = shuffled_identity(
            study.crosscoder, latents, frequency=study.latents["frequency"], generator=generator
        )
        yield edit_name(RANDOM, percent, draw), LatentEdit(latents=others)
        yield edit_name(SHUFFLED, percent, draw), LatentEdit(latents=latents, decoder=rows)
    rescaled = LatentEdit(latents=latents, norm_from=study.distilled, sources=(study.base,))
    yield edit_name(NORM_MATCHED, percent), rescaled
    if options.with_replacement:
        yield edit_name(REPLACED, percent), LatentEdit(latents=latents, mode="replacement")
