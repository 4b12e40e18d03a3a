"""What a verification found, and the folder that holds it."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosscoders._io import atomic_write_json, atomic_write_text
from crosscoders._typing import typed
from crosscoders.diffing.causal import CausalCheck
from crosscoders.diffing.verdicts import VERDICTS, Verdicts
from crosscoders.diffing.verdicts.nulls import BENIGN_DRIFT
from crosscoders.pipeline.verify.judging import Judged
from crosscoders.provenance import write_manifest

REAL, NULL, SELF, SPIKED = "real pair", BENIGN_DRIFT, "self-diff", "planted"


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What a verification found.

    Args:
        verdicts: On the run's own crosscoder.
        others: On the further crosscoders: seeds of the same pair, nulls, and the planted one.
        causal: The causal check by kind of text; empty where it was left out.
        baselines: What the cheap baselines say, as lines of text.
        out: Folder with `verdicts.csv`, `summary.txt` and the rest.
        swap: How far the swap readout can be trusted, as lines of text; none for sources of unequal widths.
    """

    verdicts: Verdicts
    others: Mapping[str, tuple[Judged, ...]]
    causal: Mapping[str, CausalCheck]
    baselines: tuple[str, ...]
    out: Path
    swap: tuple[str, ...] = ()

    def summary(self) -> str:
        """The verdicts, and what patching the survivors' differences does."""
        lines = [self.verdicts.summary()]
        lines += self._side_by_side()
        if self.others.get(SPIKED) and self.others.get(REAL):
            lines.append("One crosscoder was planted into: power leaves the stability test out.")
        for text, check in self.causal.items():
            lines += ["", f"Causal check on {text}:", check.summary()]
        for title, part in (("Swap readout:", self.swap), ("Baselines:", self.baselines)):
            lines += ["", title, *part] if part else []
        return "\n".join(lines)

    def _side_by_side(self) -> list[str]:
        """Live latents of each verdict, one figure per crosscoder: seeds of the pair, then of each null."""
        if self.verdicts.evidence is None:
            return []
        groups = {name: [one.counts() for one in self.others.get(name, ())] for name in (REAL, NULL, SELF)}
        groups[REAL] = [self.verdicts.counts(), *groups[REAL]]
        groups = {name: counts for name, counts in groups.items() if counts}
        head = [f"Side by side, live latents of each crosscoder ({'; '.join(groups)}):"]
        return head + [
            f"  {verdict}: "
            + "; ".join(", ".join(str(c[verdict]) for c in counts) for counts in groups.values())
            for verdict in VERDICTS
            if any(c[verdict] for counts in groups.values() for c in counts)
        ]

    @typed
    def explain(self, latent: int) -> str:
        """The verdict on one latent of the run's crosscoder with all its evidence.

        Args:
            latent: Number of the latent.

        Returns:
            Several lines of text.

        Raises:
            ValueError: No such latent, or there are no verdicts.
        """
        return self.verdicts.explain(latent)


def write_verification(found: Verification, *, record: Mapping[str, Any]) -> None:
    """Write `verdicts.csv` (unless there are no verdicts), `verification.json`, `summary.txt`, `run.json`.

    Args:
        found: Its `out` is created if need be; files of an earlier verification are replaced.
        record: What was done, from `crosscoders.provenance.run_record`.
    """
    found.out.mkdir(parents=True, exist_ok=True)
    for stale in ("verdicts.csv", "manifest.json"):
        (found.out / stale).unlink(missing_ok=True)
    if found.verdicts.evidence is not None:
        found.verdicts.to_csv(found.out / "verdicts.csv")
    atomic_write_json(found.out / "run.json", record)
    atomic_write_json(found.out / "verification.json", _plain(_record(found)))
    atomic_write_text(found.out / "summary.txt", found.summary() + "\n")
    write_manifest(found.out)


def _record(found: Verification) -> dict[str, Any]:
    """Every figure of the summary."""
    verdicts = found.verdicts
    return {
        "pair": verdicts.pair,
        "thresholds": dataclasses.asdict(verdicts.thresholds),
        "alignment": dataclasses.asdict(verdicts.alignment) | {"is_aligned": verdicts.alignment.is_aligned},
        "counts": None if verdicts.evidence is None else verdicts.counts(),
        "survivors": None if verdicts.evidence is None else verdicts.latents().tolist(),
        "nulls": [dataclasses.asdict(null) for null in verdicts.nulls],
        "power": None if verdicts.power is None else dataclasses.asdict(verdicts.power),
        "others": {
            name: [
                {"n_live": one.n_live, "n_specific": one.n_specific, "counts": one.counts()} for one in group
            ]
            for name, group in found.others.items()
        },
        "causal": {text: dataclasses.asdict(check) for text, check in found.causal.items()},
    }


def _plain(value: Any) -> Any:
    """JSON-ready, with null for what is undefined."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
