"""What the figures of an ablation say: the paper's finding and its controls, category by category."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from crosscoders._typing import typed
from crosscoders.bootstrap import Estimate
from crosscoders.experiments.ablation.measure import (
    ABLATED,
    NORM_MATCHED,
    RANDOM,
    RECONSTRUCTION,
    SHUFFLED,
    SIZE_BAND,
    is_comparable,
)
from crosscoders.experiments.ablation.tables import Comparison, comparison_name, is_curve
from crosscoders.report.tables import aligned

HARDLY = 0.25  # "hardly moves": by less than this share of the distilled model's change
_MATCH_LABELS = {
    "n_draws": "draws that count",
    "n_latents": "latents per draw",
    "energy_ratio": "energy as drawn / set",
    "energy_ratio_other": "the same in the other model",
    "n_unscalable": "tokens without the control",
}


@typed
def verdict(
    comparisons: Sequence[Comparison],
    *,
    percent: float,
    base: str,
    distilled: str,
    skipped: Sequence[str] = (),
) -> str:
    """Where the finding shows on the target's logit, and where the drop survives each control.

    It shows if the distilled model's change lies below zero with its whole interval, and the base's whole
    interval within `HARDLY` of that mean change. It does not if the distilled change lies at or above zero,
    or the base's beyond `HARDLY`, with the whole interval. Otherwise it cannot be told. The drop survives a
    control if it is larger than the control's, with the whole interval of the difference and larger than
    under every draw that counts; a control of another size (`SIZE_BAND`) is not comparable.

    Args:
        comparisons: All of them.
        percent: The set that is judged.
        base: Name of the base.
        distilled: Name of the distilled model.
        skipped: Categories that were not measured.
    """
    at: dict[str, dict[str, Comparison]] = {}
    for c in comparisons:
        if c.percent == percent:
            at.setdefault(c.category, {})[c.what] = c
    ours = (ABLATED, distilled)
    change, still = comparison_name(ours, None), comparison_name((ABLATED, base), None)
    pairs = {
        name: (found[change].intervals["logit"], found[still].intervals["logit"])
        for name, found in at.items()
    }
    drops = [name for name, (drop, _) in pairs.items() if drop.is_below_zero]
    is_still = {name: _stays(*pairs[name]) for name in drops}
    not_measured = f"; not measured: {', '.join(skipped)}" if skipped else ""
    sentences = [
        f"Top {percent:g}%, target's logit, measured categories {', '.join(at)}{not_measured}: the paper's "
        f"finding {_graded({name: _shows(*pair) for name, pair in pairs.items()})}",
        f"The distilled logit drops in {_listed(drops, at)}",
    ]
    if drops:
        sentences[1] += (
            f"; where it does, the base's whole interval lies within {HARDLY:.0%} of that drop in "
            f"{_listed([n for n in drops if is_still[n]], drops)} and beyond it in "
            f"{_listed([n for n in drops if is_still[n] is False], drops)}"
        )
        controls = {
            "the base's edit at equal relative size": (NORM_MATCHED, base),
            "matched random latents": (RANDOM, distilled),
            "shuffled identity": (SHUFFLED, distilled),
        }
        against = {
            label: {name: at[name][comparison_name(ours, control)] for name in drops}
            for label, control in controls.items()
        }
        sentences += [_control_sentence(label, found) for label, found in against.items()]
        all_three = [name for name in drops if all(_survives(found[name]) for found in against.values())]
        sentences.append(f"All three controls are exceeded in {_listed(all_three, drops)}")
    else:
        sentences.append("There is no drop to hold against the controls")
    return ". ".join(sentences) + "."


def _shows(drop: Estimate, base: Estimate) -> bool | None:
    """Whether the finding shows, or None where the intervals do not tell."""
    if drop.low >= 0:
        return False
    return _stays(drop, base) if drop.is_below_zero else None


def _stays(drop: Estimate, base: Estimate) -> bool | None:
    """Whether the base's interval lies within `HARDLY` of the drop; False if beyond, None if across."""
    bound = HARDLY * abs(drop.mean)
    if -bound < base.low and base.high < bound:
        return True
    return False if base.low >= bound or base.high <= -bound else None


def _survives(control: Comparison) -> bool:
    return control.is_comparable and control.is_below


def _control_sentence(label: str, found: Mapping[str, Comparison]) -> str:
    sizes = sorted(c.size_ratio for c in found.values() if c.size_ratio is not None and c.is_comparable)
    said = ""
    if sizes:
        said = f" (size {sizes[0]:.2f} to {sizes[-1]:.2f} of the set's)"
    beaten = [name for name, c in found.items() if _survives(c)]
    apart = [f"{name} ({_why_apart(c)})" for name, c in found.items() if not c.is_comparable]
    more = f"; not comparable in {', '.join(apart)}" if apart else ""
    return f"The drop exceeds that of {label}{said} in {_listed(beaten, found)}{more}"


def _why_apart(control: Comparison) -> str:
    if control.size_ratio is None or control.size_ratio != control.size_ratio:
        return "control not available"
    unequal = ", its draws too unequal" if is_comparable(control.size_ratio) else ""
    return f"size {control.size_ratio:.2f} of the set's{unequal}"


def _listed(names: Sequence[str], among: Collection[str]) -> str:
    return f"{len(names)} of {len(among)}" + (f" ({', '.join(names)})" if 0 < len(names) < len(among) else "")


def _graded(shows: Mapping[str, bool | None]) -> str:
    said = []
    for words, value in (("shows in", True), ("does not show in", False), ("cannot be told in", None)):
        names = [name for name, is_shown in shows.items() if is_shown is value]
        if names:
            said.append(f"{words} {', '.join(names)}")
    return "; ".join(said)


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
    table: list[tuple[str, ...]] = [("", "difference", "low", "high", "size ratio", "draws exceeded")]
    for c in comparisons:
        if c.percent == percents[-1] and " - " in c.what:
            logit = c.intervals["logit"]
            exceeded = "" if c.n_draws is None else f"{c.n_exceeded} of {c.n_draws}"
            cells = [_signed(value) for value in (logit.mean, logit.low, logit.high)]
            table.append((f"{c.category}: {c.what}", *cells, _cell(c.size_ratio, digits=2), exceeded))
    lines += [*aligned(table), "", *_notes(max((c.n_draws or 0) for c in comparisons))]
    return lines


def _notes(n_draws: int) -> list[str]:
    low, high = SIZE_BAND
    return [
        "Random and shuffled controls are rescaled, token by token, to the size of the set's own edit in the "
        "same model; random",
        "latents are drawn for each model by frequency and energy there. A draw counts if its mean size is "
        f"{low:g} to {high:g} of the set's;",
        "a control counts if most of its draws do. Exceeding every one of a control's draws is a rank: with "
        f"{n_draws} draws it can be",
        f"no stronger than a chance of 1 in {n_draws + 1}.",
    ]


def _category_lines(rows: Sequence[Mapping[str, Any]], percents: Sequence[float], category: str) -> list[str]:
    n, n_rows = rows[0]["n_occurrences"], rows[0]["n_rows"]
    table = [("", *(f"{percent:g}" for percent in percents))]
    by_line: dict[tuple[str, str], dict[float, Mapping[str, Any]]] = {}
    for row in filter(is_curve, rows):
        by_line.setdefault((row["source"], row["edit"]), {})[row["top_percent"]] = row
    for (source, kind), by_percent in by_line.items():
        table.append((f"{source}, {kind}", *(_signed(by_percent[p]["logit_change"]) for p in percents)))
    sizes = [
        (
            f"  ||edit||/||h|| {source}, {kind}",
            *(_cell(by_percent[p]["relative_size"], digits=3) for p in percents),
        )
        for (source, kind), by_percent in by_line.items()
        if kind in (ABLATED, RANDOM, SHUFFLED, NORM_MATCHED)
    ]
    for (source, kind), by_percent in by_line.items():
        if kind == RANDOM:
            for key, label in _MATCH_LABELS.items():
                cells = (_cell(by_percent[p][key], digits=2) for p in percents)
                sizes.append((f"  {source}, random: {label}", *cells))
    title = f"{category}: change of the target's logit ({n} occurrences in {n_rows} rows)"
    splices = (
        f"  reconstruction alone in {row['source']}: {row['logit_change']:+.3f}"
        for row in rows
        if row["edit"] == RECONSTRUCTION
    )
    return [title, *aligned([*table, *sizes]), *splices]


def _signed(value: float) -> str:
    return "-" if value != value else f"{value:+.3f}"


def _cell(value: int | float | None, *, digits: int) -> str:
    return "-" if value is None or value != value else f"{value:.{digits}f}"
