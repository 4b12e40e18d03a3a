"""The report's first page as figures: what was trained, how well, what was found and how far to trust it."""

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.interventions import SpliceScores
from crosscoders.latents import LatentTable, n_one_sided
from crosscoders.pipeline.bundled import ZOO
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.report.stored_verification import StoredVerification
from crosscoders.pipeline.report.verdict_figures import owner_of, verdict_figures
from crosscoders.pipeline.report.words import paragraph, paragraphs

_MAX_POINTS = 600  # of a training curve
_AXES = ("step", "tokens")
_SERIES = {"loss": "loss", "l0": "L0", "dead_fraction": "dead latents (share)"}
_QUESTIONS = {
    "onset": "onset of {category} (does the act start at the next token?)",
    "function": "function of the marker words of {category} (is this word the act?)",
}
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


@typed
def overview_of(
    folder: Path,
    *,
    record: Mapping[str, Any],
    config: RunConfig,
    crosscoder: Crosscoder,
    latents: LatentTable,
    verification: StoredVerification | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything on the report's first page.

    A file that is missing leaves its part empty; one that cannot be read does so with a sentence among the
    notes.

    Args:
        folder: The run's folder: `evaluation.json`, `training.csv` and `categories.json` are read.
        record: What `run.json` holds.
        config: The configuration in it.
        crosscoder: The run's crosscoder.
        latents: Its table.
        verification: Its verification, if there is one.
        notes: Sentences that are to stand with those that arise here.

    Returns:
        JSON-ready, null for what is undefined: title, library_version, sources, models, settings,
        paragraphs (heading and sentences of each), paragraph (all sentences), screen, training,
        reconstruction, splice, verdicts, latents_of_interest, notes.
    """
    said = list(notes)
    evaluation = _read(folder / "evaluation.json", _evaluation, said) or {"reconstruction": [], "splice": []}
    chosen = _read(folder / "categories.json", _category_latents, said) or []
    figures: dict[str, Any] = {
        "sources": [source.name for source in crosscoder.sources],
        "screen": _screen(latents),
        **evaluation,
        "verdicts": None if verification is None else verdict_figures(verification),
    }
    plain = json_ready(figures)
    found = {
        "title": _title(config, crosscoder),
        "library_version": record["library_version"],
        **figures,
        "models": _models(config, crosscoder),
        "settings": _settings(record, config, crosscoder),
        "paragraphs": [
            {"heading": heading, "sentences": sentences} for heading, sentences in paragraphs(plain)
        ],
        "paragraph": paragraph(plain),
        "training": _read(folder / "training.csv", _training, said),
        "latents_of_interest": _of_interest(verification, chosen, latents),
        "notes": said,
    }
    return json_ready(found)


@typed
def json_ready(value: Any) -> Any:
    """The same value for strict JSON: tuples as lists, keys as text, and null for every number that is none.

    Args:
        value: Mappings, sequences, text, numbers, flags and None.
    """
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(path: Path, read: Any, notes: list[str]) -> Any:
    """What `read` makes of a file; None where it is missing or unreadable, the latter with a note."""
    if not path.is_file():
        return None
    try:
        return read(path)
    except _UNREADABLE as err:
        notes.append(f"{path.name} could not be read and is left out: {type(err).__name__}: {err}.")
        return None


def _title(config: RunConfig, crosscoder: Crosscoder) -> str:
    names = [m["path"].removeprefix(ZOO) or m["name"] for m in _models(config, crosscoder)]
    return " against ".join(dict.fromkeys(names))


def _models(config: RunConfig, crosscoder: Crosscoder) -> list[dict[str, Any]]:
    """One entry per source; of a folder only its name, since paths tell of machines and people."""
    given = config.models()
    found = []
    for source in crosscoder.sources:
        path = given[source.name].path if source.name in given else source.model_id
        found.append(
            {
                "name": source.name,
                "path": _shown_path(path),
                "revision": source.revision,
                "d_model": source.d_model,
                "hook_name": source.hook_name,
            }
        )
    return found


def _shown_path(path: str) -> str:
    if Path(path).is_absolute() or "\\" in path or path.startswith(("~", ".")):
        return re.split(r"[\\/]", path.rstrip("\\/"))[-1]
    return path


def _settings(record: Mapping[str, Any], config: RunConfig, crosscoder: Crosscoder) -> list[list[str]]:
    """Labels and texts of what fixes the run."""
    machine, versions = record.get("machine", {}), record.get("versions", {})
    text = config.text if isinstance(config.text, str) else " + ".join(p.name for p in config.text)
    tokens = config.data.n_tokens
    sparsity = crosscoder.config
    epochs = "" if config.data.epochs == 1 else f", {config.data.epochs} times"
    pairs = [
        ("latents", f"{sparsity.n_latents:,}"),
        ("activation function", str(sparsity.activation_fn)),
        ("structure", "" if sparsity.structure is None else str(sparsity.structure)),
        ("objective", ", ".join(f"{term.name} x {term.weight:g}" for term in config.objective)),
        ("text", _shown_path(text)),
        ("training tokens", ("all that are not held out" if tokens is None else f"{tokens:,}") + epochs),
        ("hook", ", ".join(dict.fromkeys(source.hook_name for source in crosscoder.sources))),
        ("seed", str(config.seed)),
        ("machine", ", ".join(str(machine[k]) for k in ("processor", "cuda") if machine.get(k))),
        ("crosscoders", str(record["library_version"])),
        ("commit", record.get("commit") or ""),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    return [[label, said] for label, said in pairs if said]


def _screen(latents: LatentTable) -> dict[str, Any]:
    n_fire = int((latents["frequency"] > 0).sum())
    return {
        "n_fire": n_fire,
        "n_never": len(latents) - n_fire,
        "n_one_sided": n_one_sided(latents),
        "n_tokens": latents.n_tokens,
    }


def _training(path: Path) -> dict[str, Any] | None:
    """Curves over the steps, thinned to a few hundred points; empty fields are undefined."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if not {"step", "loss"} <= set(reader.fieldnames or ()):
            raise ValueError(f"expected columns step and loss, got {reader.fieldnames}")
        rows = [row for row in reader if row["loss"]]
    every = math.ceil(len(rows) / _MAX_POINTS) or 1
    rows = rows[::-every][::-1]  # the last one is kept
    if not rows:
        return None
    names = [name for name in rows[0] if name not in _AXES and any(row[name] for row in rows)]
    return {
        "step": [int(row["step"]) for row in rows],
        "series": [
            {
                "name": name,
                "label": _label(name),
                "values": [float(row[name]) if row[name] else None for row in rows],
            }
            for name in names
        ],
    }


def _label(name: str) -> str:
    if name.startswith("ev/"):
        return f"explained variance, {name[3:]}"
    return _SERIES.get(name, name.replace("_", " "))


def _evaluation(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    return {
        "reconstruction": [{"text": text, **scores} for text, scores in found["reconstruction"].items()],
        "splice": [
            _splice_row(text, source, SpliceScores(**scores))
            for text, of_sources in found["splice"].items()
            for source, scores in of_sources.items()
        ],
    }


def _splice_row(text: str, source: str, scores: SpliceScores) -> dict[str, Any]:
    is_defined = scores.ce_ablated != scores.ce_clean
    return {
        "text": text,
        "source": source,
        "kl": scores.kl,
        "ce_recovered": scores.loss_recovered if is_defined else None,
        "n_tokens": scores.n_tokens,
    }


def _category_latents(path: Path) -> list[dict[str, Any]]:
    """The latents that the demo chose, with what each was chosen for."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return [
        {
            "latent": int(one["latent"]),
            "why": f"tells {_QUESTIONS[one['kind']].format(category=one['category'])}: "
            f"AUROC {one['auroc']:.3f} on text that did not choose it",
        }
        for one in found
    ]


def _of_interest(
    verification: StoredVerification | None, chosen: Sequence[Mapping[str, Any]], latents: LatentTable
) -> list[dict[str, Any]]:
    """Survivors, then chosen latents, or else the ends of the norm screen; one entry per latent."""
    found: dict[int, list[str]] = {}
    if verification is not None and verification.verdicts.evidence is not None:
        verdicts = verification.verdicts
        for latent in verdicts.latents().tolist():
            reason = verdicts.judgements[latent].reason
            found.setdefault(latent, []).append(f"model-specific ({owner_of(verdicts, latent)}): {reason}")
    for one in chosen:
        if 0 <= one["latent"] < len(latents):
            found.setdefault(one["latent"], []).append(one["why"])
    if not found:
        found = {latent: [why] for latent, why in _ends(latents)}
    return [{"latent": latent, "why": "; ".join(reasons)} for latent, reasons in found.items()]


def _ends(latents: LatentTable) -> list[tuple[int, str]]:
    """The latent at either end of the norm screen, among those that fire."""
    if "nrn_l2" not in latents.columns:
        return []
    firing = latents.select(latents["frequency"] > 0)
    if len(firing) == 0 or bool(firing["nrn_l2"].isnan().all()):
        return []
    ends = [firing.sort("nrn_l2", descending=is_last) for is_last in (True, False)]
    return [
        (int(end["latent"][0]), f"at one end of the norm screen (NRN {float(end['nrn_l2'][0]):.2f})")
        for end in ends
    ]
