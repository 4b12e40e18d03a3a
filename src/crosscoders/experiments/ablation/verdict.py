"""What the figures of an ablation say: the paper's finding and its controls, category by category."""

from collections.abc import Mapping, Sequence
from typing import Any

from crosscoders._typing import typed
from crosscoders.experiments.ablation.measure import ABLATED, NORM_MATCHED, RANDOM, RECONSTRUCTION, SHUFFLED
from crosscoders.experiments.ablation.tables import Comparison, comparison_name, is_curve
from crosscoders.report.tables import aligned

HARDLY = 0.25  # "hardly moves": by less than this share of the distilled model's change


@typed
def verdict(comparisons: Sequence[Comparison], *, percent: float, base: str, distilled: str) -> str:
    """Whether the finding shows on the target's logit, and in which categories it survives each control.

    It shows in a category if the change in the distilled model lies below zero with its whole interval, and
    the mean change in the base is smaller than `HARDLY` of it. The drop survives a control if it is larger
    than the control's, with the whole interval of the difference and larger than under every draw.

    Args:
        comparisons: All of them.
        percent: The set that is judged.
        base: Name of the base.
        distilled: Name of the distilled model.
    """
    at: dict[str, dict[str, Comparison]] = {}
    for c in comparisons:
        if c.percent == percent:
            at.setdefault(c.category, {})[c.what] = c
    ours = (ABLATED, distilled)
    change, still = comparison_name(ours, None), comparison_name((ABLATED, base), None)
    controls = {
        "the base's at equal relative size": comparison_name(ours, (NORM_MATCHED, base)),
        "matched random latents'": comparison_name(ours, (RANDOM, distilled)),
        "shuffled identity's": comparison_name(ours, (SHUFFLED, distilled)),
    }
    drops = [name for name, found in at.items() if found[change].is_below]
    shows = [name for name in drops if abs(_mean(at[name][still])) < HARDLY * abs(_mean(at[name][change]))]
    beats = {label: [name for name in drops if at[name][w].is_below] for label, w in controls.items()}
    all_three = [name for name in drops if all(name in names for names in beats.values())]
    said = ", ".join(f"{label} in {_listed(names, at)}" for label, names in beats.items())
    if not drops:
        said = "there is no drop to hold against the controls."
    else:
        said = f"the drop exceeds {said}; all three in {_listed(all_three, at)}."
    return (
        f"Top {percent:g}%: the distilled logit drops in {_listed(drops, at)} categories and the base moves "
        f"by less than {HARDLY:.0%} of that in {_listed(shows, at)}, so the paper's finding "
        f"{_grade(shows, at)}. "
        f"Controls: {said}"
    )


def _mean(comparison: Comparison) -> float:
    return comparison.intervals["logit"].mean


def _listed(names: Sequence[str], among: Mapping[str, Any]) -> str:
    return f"{len(names)} of {len(among)}" + (f" ({', '.join(names)})" if 0 < len(names) < len(among) else "")


def _grade(names: Sequence[str], among: Mapping[str, Any]) -> str:
    if len(names) == len(among):
        return "shows in every category"
    return f"shows in {', '.join(names)} only" if names else "shows in no category"


@typed
def summary_lines(
    rows: Sequence[Mapping[str, Any]],
    comparisons: Sequence[Comparison],
    sets: Sequence[Mapping[str, Any]],
) -> list[str]:
    """The sets, the curve and the controls in plain text.

    Args:
        rows: Rows of `ablation.csv`.
        comparisons: Rows of `ablation_comparisons.csv`.
        sets: Rows of `ablation_sets.csv`.
    """
    percents = [row["top_percent"] for row in sets]
    head = ("top k %", *(f"{percent:g}" for percent in percents))
    table = [head, ("latents ablated", *(str(row["n_latents"]) for row in sets))]
    table.append(("their median NRN", *(f"{row['median_nrn']:.3f}" for row in sets)))
    lines = ["", "The sets:", *aligned(table)]
    for category in dict.fromkeys(row["category"] for row in rows):
        lines += ["", *_category_lines([r for r in rows if r["category"] == category], percents, category)]
    lines += ["", f"Differences at top {percents[-1]:g}% (95% intervals over rows of text), target's logit:"]
    table: list[tuple[str, ...]] = [("", "difference", "low", "high", "draws exceeded")]
    for c in comparisons:
        if c.percent == percents[-1] and " - " in c.what:
            logit = c.intervals["logit"]
            exceeded = "" if c.n_draws is None else f"{c.n_exceeded} of {c.n_draws}"
            cells = (f"{value:+.3f}" for value in (logit.mean, logit.low, logit.high))
            table.append((f"{c.category}: {c.what}", *cells, exceeded))
    lines += aligned(table)
    return lines


def _category_lines(rows: Sequence[Mapping[str, Any]], percents: Sequence[float], category: str) -> list[str]:
    n, n_rows = rows[0]["n_occurrences"], rows[0]["n_rows"]
    table = [("", *(f"{percent:g}" for percent in percents))]
    by_line: dict[tuple[str, str], dict[float, Mapping[str, Any]]] = {}
    for row in filter(is_curve, rows):
        by_line.setdefault((row["source"], row["edit"]), {})[row["top_percent"]] = row
    for (source, kind), by_percent in by_line.items():
        table.append((f"{source}, {kind}", *(f"{by_percent[p]['logit_change']:+.3f}" for p in percents)))
    sizes = [
        (f"  ||edit||/||h|| {source}, {kind}", *(f"{by_percent[p]['relative_size']:.3f}" for p in percents))
        for (source, kind), by_percent in by_line.items()
        if kind in (ABLATED, NORM_MATCHED)
    ]
    energy = next(by_percent for (_, kind), by_percent in by_line.items() if kind == RANDOM)
    sizes.append(("  energy, random / set", *(_cell(energy[p]["energy_ratio"]) for p in percents)))
    sizes.append(("  unmatched per draw", *(f"{energy[p]['n_unmatched']:.1f}" for p in percents)))
    title = f"{category}: change of the target's logit ({n} occurrences in {n_rows} rows)"
    splices = (
        f"  reconstruction alone in {row['source']}: {row['logit_change']:+.3f}"
        for row in rows
        if row["edit"] == RECONSTRUCTION
    )
    return [title, *aligned([*table, *sizes]), *splices]


def _cell(value: float) -> str:
    return "" if value != value else f"{value:.2f}"
