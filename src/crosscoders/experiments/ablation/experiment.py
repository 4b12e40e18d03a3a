"""The paper's ablation curve, with the controls that it lacks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.experiments.ablation.measure import AblationOptions, Measured, measure_category
from crosscoders.experiments.ablation.tables import compare, control_rows, curve_panels, effect_rows
from crosscoders.experiments.ablation.verdict import summary_lines, verdict
from crosscoders.experiments.study import Finding, Study
from crosscoders.interventions.ablation.latent_sets import threshold_set
from crosscoders.interventions.ablation.occurrences import Occurrences, choose_occurrences
from crosscoders.report.figures.ablation import ablation_curves
from crosscoders.report.tables import write_csv

_CLAIM = (
    "Ablating the frequent latents with NRN above 0.5 lowers the target token's logit in the distilled model "
    "in every category of reasoning, and hardly moves it in the base."
)
_FIGURES = (
    ("ablation", "logit", "change of the target's logit"),
    ("ablation_centered", "centered", "change of logit - mean logit"),
)
_SHARED_BAND = (0.444, 0.556)  # L2 NRN where Minder et al.'s norm difference lies between 0.4 and 0.6


@typed
def ablation_experiment(study: Study, options: AblationOptions, *, folder: Path) -> Finding:
    """Ablate the latents that the paper ablates, and their controls, in both models.

    Controls: latents drawn at random, for each model apart, that fire as often and write as much there; the
    same codes written along other latents' directions (both rescaled, token by token, to the size of the
    set's edit in that model); and the base edit rescaled to the distilled model's relative size.
    Intervals (95%) resample rows of text; a row may hold several documents.

    Args:
        study: A run of two models with markers of each category.
        options: What to do.
        folder: Gets `ablation.csv` (every figure), `ablation_comparisons.csv` (differences with intervals),
            `ablation_sets.csv` (the sets), `ablation_controls.csv` (the latents of every random control and
            how they match as drawn), and two figures.

    Returns:
        What was found.

    Raises:
        ValueError: No category has an occurrence, no latent passes the threshold, or not two sources.
        KeyError: The table of latents lacks `options.nrn_column`.
    """
    if len(study.crosscoder.sources) != 2:
        raise ValueError(
            "ablation_experiment: compares two models, but the run has "
            f"{len(study.crosscoder.sources)} sources."
        )
    base, distilled = study.base, study.distilled
    sets = _latent_sets(study, options)
    places, skipped = _occurrences(study, options)
    controls, intervals = (torch.Generator().manual_seed(options.seed + i) for i in (1, 2))
    rows, comparisons, drawn, notes = [], [], [], [_threshold_line(study, options)]
    for category, occurrences in places.items():
        m = measure_category(study, options, sets, occurrences, generator=controls)
        rows += effect_rows(category, m, sets, sources=(base, distilled), generator=intervals)
        comparisons += compare(category, m, sets, base=base, distilled=distilled, generator=intervals)
        drawn += control_rows(category, m, sets)
        notes += _occurrence_lines(category, m)
    if skipped:
        notes.append(f"Skipped for want of a single occurrence: {', '.join(skipped)}.")
    set_rows = [_set_row(study, options, percent, latents) for percent, latents in sets.items()]
    write_csv(folder / "ablation.csv", rows)
    write_csv(folder / "ablation_comparisons.csv", [c.to_row() for c in comparisons])
    write_csv(folder / "ablation_sets.csv", set_rows)
    write_csv(folder / "ablation_controls.csv", drawn)
    for file, measure, label in _FIGURES:
        ablation_curves(curve_panels(rows, measure), list(sets), folder / f"{file}.png", ylabel=label)
    return Finding(
        name="ablation",
        title="Ablation of frequent latents of high NRN",
        claim=_CLAIM,
        verdict=verdict(comparisons, percent=max(sets), base=base, distilled=distilled, skipped=skipped),
        lines=(*notes, *summary_lines(rows, comparisons, set_rows)),
        figures=tuple(file for file, _, _ in _FIGURES),
        tables=("ablation.csv", "ablation_comparisons.csv", "ablation_sets.csv", "ablation_controls.csv"),
    )


def _latent_sets(study: Study, options: AblationOptions) -> dict[float, Tensor]:
    """The sets by percentage, empty ones left out."""
    nrn, frequency = study.latents[options.nrn_column], study.latents["frequency"]
    sets = {
        percent: threshold_set(
            nrn, frequency, top_percent=percent, nrn_above=options.nrn_above, of=options.of
        )
        for percent in options.top_percents
    }
    if not any(len(latents) for latents in sets.values()):
        raise ValueError(
            f"ablation_experiment: none of the {options.top_percents[-1]:g}% most frequent latents has "
            f"{options.nrn_column} above {options.nrn_above}; lower nrn_above or take more latents."
        )
    return {percent: latents for percent, latents in sets.items() if len(latents)}


def _occurrences(study: Study, options: AblationOptions) -> tuple[dict[str, Occurrences], list[str]]:
    """Chosen occurrences by category, and the categories that have none."""
    generator = torch.Generator().manual_seed(options.seed)
    counted = study.corpus.counted(study.config.data)
    chosen = {
        category: choose_occurrences(
            mask, n=options.n_occurrences, generator=generator, counted=counted, when_none="skip"
        )
        for category, mask in study.material.markers.items()
    }
    found = {category: places for category, places in chosen.items() if len(places)}
    if not found:
        raise ValueError(
            f"ablation_experiment: none of the categories {list(chosen)} occurs in held-out text."
        )
    return found, [category for category in chosen if category not in found]


def _threshold_line(study: Study, options: AblationOptions) -> str:
    nrn, fires = study.latents[options.nrn_column], study.latents["frequency"] > 0
    above = fires & (nrn > options.nrn_above)
    shared = above & (nrn > _SHARED_BAND[0]) & (nrn < _SHARED_BAND[1])
    return (
        f"{options.nrn_column} > {options.nrn_above:g} holds for {int(above.sum())} of the "
        f"{int(fires.sum())} latents that fire, {int(shared.sum())} of them within "
        f"{_SHARED_BAND[0]} to {_SHARED_BAND[1]} (shared by the norm screen, a band derived for L2 norms)."
    )


def _occurrence_lines(category: str, m: Measured) -> Iterator[str]:
    places = m.occurrences
    if len(places) < places.n_asked:
        yield f"{category}: only {len(places)} occurrences, {places.n_asked} were asked for."


def _set_row(study: Study, options: AblationOptions, percent: float, latents: Tensor) -> dict[str, Any]:
    nrn = study.latents[options.nrn_column][latents]
    return {
        "top_percent": percent,
        "n_latents": len(latents),
        "median_nrn": float(nrn.double().quantile(0.5)),
        "max_nrn": float(nrn.max()),
        "n_shared": int(((nrn > _SHARED_BAND[0]) & (nrn < _SHARED_BAND[1])).sum()),
        "mean_frequency": float(study.latents["frequency"][latents].mean()),
        "latents": " ".join(str(latent) for latent in latents.tolist()),
    }
