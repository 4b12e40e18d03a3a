"""What the overview shows of a verification: counts beside chance, power, alignment and the causal check."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from crosscoders._typing import typed
from crosscoders.diffing.measures.alignment import Alignment
from crosscoders.diffing.verdicts import (
    DECOUPLING,
    RESCALED,
    REUSED,
    ROTATED,
    SHARED,
    SHRINKAGE,
    SPECIFIC,
    UNDECIDED,
    UNSTABLE,
    NullReference,
    Power,
    Verdicts,
)
from crosscoders.pipeline.report.stored_verification import StoredVerification

VERDICT_HELP = {
    SPECIFIC: "One model writes it; the other writes nothing measurable where it fires, in any direction.",
    REUSED: "One model writes it, but in a direction that both models already have.",
    ROTATED: "Both models write it, in different directions.",
    RESCALED: "Both models write it, one of them more weakly.",
    SHARED: "Both models write it alike.",
    SHRINKAGE: "The decoder norms call it one model's, but both write it.",
    DECOUPLING: "It looks one model's, but another latent carries the other model's part.",
    UNSTABLE: "One model writes it, but other training seeds do not find it.",
    UNDECIDED: "Too rare, or the evidence spans a threshold.",
}


@typed
def verdict_figures(found: StoredVerification) -> dict[str, Any]:
    """A verification as the overview holds it; undefined figures are NaN or None.

    Rates of nulls and the power come with the 95% Wilson intervals that verification itself prints.

    Args:
        found: What was read back.

    Returns:
        `counts` (verdict, live latents, what it means; None if the sources are not aligned), `pair`,
        `survivors` with the `owners` of each, `screened`, `nulls`, `others`, `power`, `alignment`, `causal`,
        `thresholds` (where verdicts draw their lines), `is_short`, and `why_none`: why there are no verdicts.
    """
    verdicts = found.verdicts
    is_judged = verdicts.evidence is not None
    survivors = verdicts.latents().tolist() if is_judged else []
    return {
        "counts": [[v, n, VERDICT_HELP[v]] for v, n in verdicts.counts().items()] if is_judged else None,
        "pair": list(verdicts.pair),
        "survivors": survivors,
        "owners": [owner_of(verdicts, latent) for latent in survivors],
        "screened": verdicts.n_screened() if is_judged else None,
        "nulls": [_null(null, verdicts) for null in verdicts.nulls],
        "others": [{"name": name, **one} for name, group in found.others.items() for one in group],
        "power": None if verdicts.power is None else _power(verdicts.power),
        "alignment": _alignment(verdicts.alignment),
        "causal": [
            _set_row(text, name, score, n_tokens=check["n_tokens"])
            for text, check in found.causal.items()
            for name, score in check["sets"].items()
        ],
        "thresholds": asdict(verdicts.thresholds),
        "is_short": found.is_short,
        "why_none": None if is_judged else verdicts.alignment.message,
    }


@typed
def owner_of(verdicts: Verdicts, latent: int) -> str:
    """Name of the source that writes a latent more strongly.

    Args:
        verdicts: With evidence.
        latent: Number of the latent.
    """
    assert verdicts.evidence is not None
    return verdicts.pair[int(verdicts.evidence["stronger"][latent])]


def _null(null: NullReference, verdicts: Verdicts) -> dict[str, Any]:
    rate, low, high = null.rate()
    frequency = verdicts.frequency()
    expected, at_most = null.expected(frequency[frequency > 0])
    return {
        "name": null.name,
        "n_crosscoders": null.n_crosscoders,
        "n_live": null.total_live,
        "n_false": null.total_false,
        "rate": rate,
        "low": low,
        "high": high,
        "expected": expected,
        "at_most": at_most,
    }


def _power(power: Power) -> dict[str, Any]:
    return {
        "strength": power.strength,
        "typical": power.typical_strength,
        "rates": [
            {
                "rate": at.rate,
                "n_planted": at.n_planted,
                "n_recovered": at.n_recovered,
                "n_specific": at.n_specific,
                "low": at.interval[0],
                "high": at.interval[1],
            }
            for at in power.rates
        ],
        "known_wrong": power.known_direction_specific,
        "known_planted": power.known_direction_planted,
    }


def _alignment(found: Alignment) -> dict[str, Any]:
    return {
        "is_aligned": found.is_aligned,
        "message": found.message,
        "n_rows": found.n_rows,
        "r_squared": list(found.r_squared),
        "permuted": list(found.permuted),
        "shifted": list(found.shifted),
    }


def _set_row(text: str, name: str, found: Mapping[str, Any], *, n_tokens: int) -> dict[str, Any]:
    """One set of latents on one kind of text: the share of the gap that it closes, beside its controls."""
    closed = found["score"]["share_closed"]
    return {
        "text": text,
        "set": name,
        "n_latents": len(found["latents"]),
        "closed": closed["mean"],
        "low": closed["low"],
        "high": closed["high"],
        "n_tokens": n_tokens,
        "controls": [
            _control(kind, control, closed=closed["mean"]) for kind, control in found["controls"].items()
        ],
    }


def _control(kind: str, found: Mapping[str, Any], *, closed: float | None) -> dict[str, Any]:
    """Random sets in place of one: how many of them close as much, and by how much it exceeds their mean."""
    draws = [share for share in found["share_closed"] if share is not None]
    return {
        "kind": kind,
        "n_draws": len(draws),
        "n_as_much": sum(closed is not None and share >= closed for share in draws),
        "unscalable": found["unscalable"],
        "advantage": found["advantage"]["mean"],
        "low": found["advantage"]["low"],
        "high": found["advantage"]["high"],
    }
