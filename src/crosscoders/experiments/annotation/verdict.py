"""What the annotation's counts say, in words."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from crosscoders._typing import typed
from crosscoders.reasoning import CategoryExcess
from crosscoders.report.tables import aligned

Counts = Mapping[str, Mapping[str, Sequence[CategoryExcess]]]  # by annotator and end, any category first
BY = {"lexical": "by words", "label": "by labels"}


@typed
def annotation_verdict(counts: Counts, ends: Mapping[str, str]) -> str:
    """What the counts of each annotator say, and whether the paper's finding shows in them.

    Args:
        counts: Counts by annotator, then by end ("top", "bottom"), any category first.
        ends: Name of the model at each end.
    """
    parts = []
    for kind, found in counts.items():
        said = []
        for end, name in ends.items():
            c = found[end][0]
            random = f"random ones of the same frequency {c.expected:.1f} [{c.low:.0f}, {c.high:.0f}]"
            said.append(f"{name} end {c.found} of {c.n} ({random}): {c.verdict}")
        parts.append(f"Latents with a category {BY[kind]}: {'; '.join(said)}.")
    top = [BY[kind] for kind, found in counts.items() if found["top"][0].verdict == "more"]
    bottom = [BY[kind] for kind, found in counts.items() if found["bottom"][0].verdict == "more"]
    if not top:
        parts.append("The distilled end holds no more of them than its frequencies explain")
    else:
        only = " only" if len(top) < len(counts) else ""
        parts.append(
            f"The distilled end holds more of them than its frequencies explain {' and '.join(top)}{only}"
        )
    base = f"the base end holds more of them {' and '.join(bottom)}" if bottom else "the base end does not"
    if not top and not bottom:
        base = "neither does the base end"
    return f"{' '.join(parts)}; {base}."


@typed
def annotation_lines(
    counts: Counts, rows: Sequence[Mapping[str, Any]], *, ends: Mapping[str, str]
) -> list[str]:
    """The counts as a table, and how the annotations score.

    Args:
        counts: Counts by annotator, then by end.
        rows: Rows of `annotation.csv`.
        ends: Name of the model at each end.
    """
    table = [["by", "end", "category", "found", "random", "95%", "verdict"]]
    for kind, found in counts.items():
        for end, each in found.items():
            for c in each:
                interval = f"[{c.low:.0f}, {c.high:.0f}]"
                cells = [kind, ends[end], c.category, str(c.found), f"{c.expected:.1f}", interval, c.verdict]
                table.append(cells)
    return [*aligned(table), "", *_score_lines(rows)]


def _score_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for kind in ("lexical", "llm"):
        for name in ("detection", "fuzzing"):
            scores = [row.get(f"{kind}_{name}") for row in rows]
            known = [score for score in scores if score is not None and not math.isnan(score)]
            if known:
                mean = sum(known) / len(known)
                lines.append(f"{kind} annotations, {name}: mean balanced accuracy {mean:.3f} ({len(known)})")
    return lines or ["No annotation could be scored: none names a category and has test snippets."]
