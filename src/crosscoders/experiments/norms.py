"""Which latents belong to one model by their decoder norms: the paper's screen, in all four conventions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.experiments.study import Finding, Study
from crosscoders.report.figures.norms import cosine_against_nrn, nrn_conventions
from crosscoders.report.tables import aligned, write_csv

CONVENTIONS: dict[str, str] = {
    "nrn_l1": "L1 norms, normalized space (the paper)",
    "nrn_l2": "L2 norms, normalized space (the field)",
    "nrn_l1_raw": "L1 norms, raw space",
    "nrn_l2_raw": "L2 norms, raw space",
}


@dataclass(frozen=True, kw_only=True)
class NormsOptions:
    """Where the screen draws its lines.

    Args:
        low: NRN below which a latent counts as the first model's.
        high: NRN above which it counts as the second model's.
        n_bins: Bins of the histogram.
    """

    low: float = 0.1
    high: float = 0.9
    n_bins: int = 40

    def __post_init__(self) -> None:
        if not 0 <= self.low < 0.5 < self.high <= 1:
            raise ValueError(f"NormsOptions: needs 0 <= low < 0.5 < high <= 1, got {self.low}, {self.high}.")
        if self.n_bins < 2:
            raise ValueError(f"NormsOptions: n_bins must be at least 2, got {self.n_bins}.")


@typed
def norms_experiment(study: Study, options: NormsOptions, *, folder: Path) -> Finding:
    """Histogram of NRN over the latents that fire, by L1 and L2 norms, in normalized and in raw space.

    NRN is `crosscoders.metrics.normalized_decoder_ratio`. The four conventions disagree wherever the sources'
    scales differ (raw against normalized) or decoder vectors are unequally spread over coordinates (L1
    against L2); what holds in one only is no finding.

    Args:
        study: A run of two sources.
        options: Thresholds and bins.
        folder: Where `norms.csv`, `nrn_histogram.csv` and the figures go.

    Returns:
        The finding.

    Raises:
        ValueError: Other than two sources, or no latent fires.
    """
    table = study.latents
    missing = [name for name in CONVENTIONS if name not in table.columns]
    if missing:
        raise ValueError(
            f"norms_experiment: the table of latents lacks {missing}; NRN is defined for two sources, "
            f"this run has {[source.name for source in study.crosscoder.sources]}."
        )
    fired = table["frequency"] > 0
    if not bool(fired.any()):
        raise ValueError("norms_experiment: no latent fires on the held-out text.")
    rows = [_summary(name, table[name][fired], options) for name in CONVENTIONS]
    write_csv(folder / "norms.csv", rows)
    write_csv(folder / "nrn_histogram.csv", _histogram({n: table[n][fired] for n in CONVENTIONS}, options))
    nrn_conventions(
        {label: table[n][fired] for n, label in CONVENTIONS.items()},
        folder / "nrn.png",
        names=(study.base, study.distilled),
        n_bins=options.n_bins,
    )
    figures = ["nrn"]
    if "decoder_cosine" in table.columns:
        cosine_against_nrn(table, folder / "cosine_nrn.png")
        figures.append("cosine_nrn")
    return Finding(
        name="norms",
        title="Which latents belong to one model: decoder norms",
        claim="A tail of latents with NRN near 1 belongs to the distilled model, one near 0 to the base; "
        "the mean NRN grows with model size.",
        verdict=_verdict(rows, int(fired.sum()), options, names=(study.base, study.distilled)),
        lines=tuple(_lines(rows)),
        figures=tuple(figures),
        tables=("norms.csv", "nrn_histogram.csv"),
    )


def _summary(name: str, nrn: Tensor, options: NormsOptions) -> dict[str, Any]:
    nrn = nrn.double()
    return {
        "convention": name,
        "n_latents": len(nrn),
        "mean": float(nrn.mean()),
        "median": float(nrn.median()),
        "min": float(nrn.min()),
        "max": float(nrn.max()),
        f"below_{options.low:g}": int((nrn < options.low).sum()),
        "below_0.5": int((nrn < 0.5).sum()),
        "above_0.5": int((nrn > 0.5).sum()),
        f"above_{options.high:g}": int((nrn > options.high).sum()),
    }


def _histogram(values: dict[str, Tensor], options: NormsOptions) -> list[dict[str, Any]]:
    edges = torch.linspace(0, 1, options.n_bins + 1, dtype=torch.float64)
    counts = {
        name: torch.histogram(nrn.double(), bins=edges).hist.long().tolist() for name, nrn in values.items()
    }
    return [
        {"from": float(edges[at]), "to": float(edges[at + 1]), **{name: counts[name][at] for name in values}}
        for at in range(options.n_bins)
    ]


def _verdict(rows: list[dict[str, Any]], n: int, options: NormsOptions, *, names: tuple[str, str]) -> str:
    low, high = f"below_{options.low:g}", f"above_{options.high:g}"
    parts = []
    for name, key in ((names[1], high), (names[0], low)):
        counts = [row[key] for row in rows]
        said = f"{counts[0]}" if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)} by convention"
        parts.append(f"{name}: {'none' if max(counts) == 0 else said}")
    found = "; ".join(parts)
    mean = rows[0]["mean"]
    tail = (
        "No latent belongs to one model by this screen."
        if all(row[low] + row[high] == 0 for row in rows)
        else "A screen only: none of them has been verified."
    )
    return (
        f"Of {n} latents that fire, beyond NRN {options.high:g} or {options.low:g}: {found}; mean NRN "
        f"{mean:.3f} (L1, normalized). {tail}"
    )


def _lines(rows: list[dict[str, Any]]) -> list[str]:
    cells = [list(rows[0])]
    cells += [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    return aligned(cells)
