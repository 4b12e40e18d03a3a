"""The planted benchmark's tables as Markdown, made from `benchmarks/results/planted.json` alone."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "planted.json"
OWN_KINDS = ("reused", "rotated")
Record = dict[str, Any]


def load(path: Path = RESULTS) -> Record:
    """Read the recorded results."""
    return json.loads(path.read_text(encoding="utf-8"))


def markdown(results: Record) -> str:
    """All tables: thresholds, one score table per setting, the architectures, and the crosscoders judged.

    Args:
        results: What `python -m benchmarks.planted score` wrote.
    """
    scores, standard = results["scores"], results["standard"]
    parts = [_calibration_table(results["calibration"])]
    for setting in results["settings"]:
        rows = [row for row in scores if row["setting"] == setting and row["recipe"] == standard]
        if rows:
            parts.append(f"Setting: {setting}, {standard}\n\n{_score_table(rows)}")
    others = [row for row in scores if row["recipe"] != standard]
    if others:
        parts.append(
            f"Other architectures and baselines, equal widths\n\n{_score_table(others, recipe=True)}"
        )
    return "\n\n".join([*parts, _crosscoder_table(results["crosscoders"])]) + "\n"


def _calibration_table(lines: Record) -> str:
    """Each threshold between the quantiles of the two groups that it separates."""
    rows = [
        [
            name,
            f"{line['threshold']:.2f}",
            *(f"{line[group][q]:.3f}" for group, q in (("below", "0.95"), ("above", "0.05"))),
            f"{line['below']['n']} / {line['above']['n']}",
        ]
        for name, line in lines.items()
    ]
    return _table(["threshold", "value", "95% of what lies below", "5% of what lies above", "latents"], rows)


def _score_table(records: list[Record], *, recipe: bool = False) -> str:
    """One row per method and base rate."""
    head = ["method", "base rate", "precision", "recall of recovered", "power", "F1"]
    head += ["re-used called specific", "rotated called specific"]
    rows = [
        [
            *([row["recipe"]] if recipe else []),
            row["method"],
            f"{100 * row['rate']:g}%",
            *(_interval(row[name]) for name in ("precision", "recall", "power")),
            _number(row["f1"]),
            *(_called(row["kinds"][kind]) for kind in OWN_KINDS),
        ]
        for row in records
    ]
    return _table([*(["crosscoder"] if recipe else []), *head], rows)


def _called(kind: Record) -> str:
    """How many of the recovered features of another kind were called model-specific."""
    n, of = kind["n_called"], kind["n_recovered"]
    return f"{100 * n / of:.1f}% ({n} of {of})" if of else "-"


def _crosscoder_table(records: list[Record]) -> str:
    rows = [
        [
            row["setting"],
            row["recipe"],
            ", ".join(map(str, row["seeds"])),
            " / ".join(f"{share:.3f}" for share in row["explained"]),
            f"{row['l0']:.1f}",
            f"{row['live']:.0f}",
        ]
        for row in records
    ]
    head = ["setting", "crosscoder", "seeds", "explained variance", "latents on a token", "live latents"]
    return _table(head, rows)


def _interval(share: list[float | None]) -> str:
    """A share with its interval; a dash where it is undefined."""
    return "-" if None in share else "{:.3f} ({:.3f}-{:.3f})".format(*share)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
