"""A run's evaluation as text: explained variance beside its baseline, then the spliced models."""

from collections.abc import Mapping, Sequence

from crosscoders._typing import typed
from crosscoders.evaluation import ReconstructionScores
from crosscoders.interventions import SpliceScores
from crosscoders.report.tables import aligned


@typed
def evaluation_lines(
    names: Sequence[str],
    reconstruction: Mapping[str, ReconstructionScores],
    splice: Mapping[str, Mapping[str, SpliceScores]],
) -> list[str]:
    """Lines of a run's summary.

    Args:
        names: Names of the sources, in the order of the columns.
        reconstruction: Scores per kind of held-out text.
        splice: Scores per kind of text and source; empty where nothing was spliced.

    Returns:
        Two aligned tables, or one and a sentence that says why.
    """
    lines = [
        "Explained variance (diff = second minus first source) beside a table of token means:",
        *aligned(_reconstruction_rows(names, reconstruction)),
        "",
    ]
    if not splice:
        return [*lines, "Not spliced into the models (data.splice_tokens = 0): no KL and no CE recovered."]
    return [
        *lines,
        "Reconstruction in place of the activation (ablated = zeros in its place):",
        *aligned(_splice_rows(splice)),
    ]


def _reconstruction_rows(
    names: Sequence[str], reconstruction: Mapping[str, ReconstructionScores]
) -> list[list[str]]:
    rows = [["held-out text", "tokens", "L0", *(f"EV {name}" for name in names), "EV diff"]]
    for kind, scores in reconstruction.items():
        counts = [str(scores.n_tokens), f"{scores.l0:.1f}"]
        rows.append([kind, *counts, *_values(scores.explained_variance, names), _number(scores.difference)])
        if scores.token_means is not None:
            means = _values(scores.token_means, names)
            rows.append(["  token means", "", "", *means, _number(scores.token_means_difference)])
    return rows


def _splice_rows(splice: Mapping[str, Mapping[str, SpliceScores]]) -> list[list[str]]:
    rows = [["spliced into", "text", "KL (nats)", "CE clean", "CE spliced", "CE ablated", "CE recovered"]]
    for kind, per_model in splice.items():
        for name, s in per_model.items():
            values = (s.kl, s.ce_clean, s.ce_spliced, s.ce_ablated, s.loss_recovered)
            rows.append([name, kind, *(f"{value:.4f}" for value in values)])
    return rows


def _values(by_source: Mapping[str, float], names: Sequence[str]) -> list[str]:
    return [f"{by_source[name]:.4f}" for name in names]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
