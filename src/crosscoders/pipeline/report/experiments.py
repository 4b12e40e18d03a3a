"""The report's experiments: every finding that was written, with its figures, and the demo's steering."""

import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crosscoders._io import member_path
from crosscoders._typing import typed
from crosscoders.errors import CheckpointError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_WEIGHTS = "crosscoder/model.safetensors"
_NONE = (
    "No experiment was run on this crosscoder. `crosscoders experiment NAME RUN` runs one of them, "
    "`crosscoders reproduce` all."
)
_INCOMPLETE = "Not complete: part of it failed and should be done again. "
_STEERING = "steering-demo"  # its folder below figures/
_STEERING_COLUMNS = (  # key in steering.json, heading
    ("reflections_per_answer", "reflections"),
    ("accuracy", "accuracy"),
    ("tokens_per_answer", "tokens"),
    ("finished", "finished"),
)
_PNG_HEAD = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"  # width and height follow, four bytes each
_FIGURES = {  # file name of a figure -> what it shows; {} is what its parentheses match
    "nrn": "histogram of NRN",
    "cosine_nrn": "decoder cosine against NRN",
    "annotation": "latents of each category at both ends of the screen, beside random ones",
    "ablation": "change of the target's logit against the size of the ablated set, beside controls",
    "ablation_centered": "change of the target's logit less the mean logit against the size of the ablated "
    "set, beside controls",
    "steering": "reflections, accuracy and tokens of answers over strengths, beside controls",
    "steering_(.+)": "measures of the answers of {} over strengths, beside random directions",
    "parallelogram": "how far word pairs are from parallelograms, beside their null",
    "structure": "variance by principal component, and how close the nearest other decoder vector is",
}
_TEXTS, _LISTS = ("name", "title", "claim", "verdict"), ("lines", "figures", "tables")


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """What is gathered: experiments, the figures to copy, and what had to be left out."""

    experiments: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@typed
def experiments_of(folder: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """Every experiment that was run on a run's crosscoder.

    Read are RUN/experiments/NAME/finding.json; for a run of a reproduction also the folders
    EXPERIMENT-RUN beside its `reproduction.json`; and the demo's `steering.json`. What cannot be read, or was
    made from another crosscoder, is left out and named in `notes`.

    Args:
        folder: The run's folder.

    Returns:
        JSON-ready `experiments` (name, title, claim, verdict, lines, figures, tables, made_from,
        is_complete), `none` (a sentence if there are none, else null) and `notes`; and the figures: where
        each goes below `figures/`, such as "norms/nrn.png", and the file to copy.
    """
    shown = _Shown()
    for where in (*_own(folder), *_reproduced(folder, shown.notes)):
        try:
            _add(shown, where, weights=_weights_sha256(folder))
        except (OSError, ValueError, KeyError, TypeError) as err:
            shown.notes.append(f"The experiment in {where.name} could not be read: {_told(err)}")
    try:
        _add_steering(shown, folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        shown.notes.append(f"The demo's steering could not be read: {_told(err)}")
    none = None if shown.experiments else _NONE
    return {"experiments": shown.experiments, "none": none, "notes": shown.notes}, shown.figures


def _own(folder: Path) -> list[Path]:
    return sorted(path.parent for path in (folder / "experiments").glob("*/finding.json"))


def _reproduced(folder: Path, notes: list[str]) -> Iterator[Path]:
    """Folders of a reproduction's experiments on this run, in the order of its plan."""
    whole = folder.resolve().parent.parent
    if folder.resolve().parent.name != "runs" or not (whole / "reproduction.json").is_file():
        return
    try:
        content = json.loads((whole / "reproduction.json").read_text(encoding="utf-8"))
        planned = [
            experiment
            for experiment, runs in content["config"]["experiments"].items()
            if folder.resolve().name in runs and _NAME.fullmatch(experiment)
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        notes.append(f"The experiments of the reproduction are left out: {_told(err)}")
        return
    for experiment in planned:
        where = whole / f"{experiment}-{folder.resolve().name}"
        if (where / "finding.json").is_file():
            yield where
        else:
            notes.append(f"The experiment {experiment} was planned, but there is no finding of it.")


def _weights_sha256(folder: Path) -> str | None:
    """What the run's manifest says of its crosscoder; None where it says nothing."""
    try:
        content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return content["files"][_WEIGHTS]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _add(shown: _Shown, where: Path, *, weights: str | None) -> None:
    if not _NAME.fullmatch(where.name):
        raise ValueError("its folder's name holds more than letters, digits, dot, _ and -.")
    content = json.loads((where / "finding.json").read_text(encoding="utf-8"))
    finding, made_from = content["finding"], content.get("made_from")
    for name in _TEXTS:
        if not isinstance(finding[name], str):
            raise ValueError(f"{name} should be text.")
    for name in _LISTS:
        if not all(isinstance(item, str) for item in finding[name]) or isinstance(finding[name], str):
            raise ValueError(f"{name} should be a list of texts.")
    made_with = made_from.get("crosscoder_sha256") if isinstance(made_from, dict) else None
    if None not in (made_with, weights) and made_with != weights:
        raise ValueError("it was made from another crosscoder; run it again.")
    is_complete = finding.get("is_complete", True) is True
    shown.experiments.append(
        {
            **{name: finding[name] for name in _TEXTS},
            "name": where.name,
            "verdict": finding["verdict"] if is_complete else _INCOMPLETE + finding["verdict"],
            "lines": list(finding["lines"]),
            "figures": _figures(shown, where, finding["figures"], title=finding["title"]),
            "tables": [{"name": name} for name in finding["tables"]],
            "made_from": _without_empty(made_from),
            "is_complete": is_complete,
        }
    )


def _figures(shown: _Shown, where: Path, names: Sequence[str], *, title: str) -> list[dict[str, Any]]:
    """The figures of one finding that are there; names that lead out of its folder are refused."""
    found = []
    for name in names:
        path = _inside(where, f"{name}.png") if _NAME.fullmatch(name) else None
        if path is None or not path.is_file():
            why = "it leads out of its folder" if path is None else "there is no such PNG"
            shown.notes.append(f"Figure {name!r} of {where.name} is left out: {why}.")
            continue
        target = f"{where.name}/{name}.png"
        shown.figures[target] = path
        found.append(_figure(target, path, alt=f"{title}: {_described(name)}"))
    return found


def _figure(target: str, path: Path, *, alt: str) -> dict[str, Any]:
    """A figure's place, description and size in pixels, which keeps its room free while it loads."""
    shown: dict[str, Any] = {"file": f"figures/{target}", "alt": alt}
    with path.open("rb") as file:
        head = file.read(24)
    if len(head) == 24 and head.startswith(_PNG_HEAD):
        shown["width"], shown["height"] = struct.unpack(">II", head[16:])
    return shown


def _described(name: str) -> str:
    """A figure's name in words."""
    for key, said in _FIGURES.items():
        if found := re.fullmatch(key, name):
            return said.format(*found.groups())
    return name.replace("_", " ")


def _without_empty(made_from: Any) -> Any:
    """The same without options that are empty: no lexicon, no endpoint."""
    if not isinstance(made_from, Mapping):
        return made_from
    kept = {key: _without_empty(value) for key, value in made_from.items()}
    return {key: value for key, value in kept.items() if value not in ("", [], {}, None)}


def _inside(folder: Path, name: str) -> Path | None:
    try:
        return member_path(folder, name)
    except CheckpointError:
        return None


def _add_steering(shown: _Shown, folder: Path) -> None:
    """The sweep of the demo, which is no experiment of the catalog, in the same form."""
    if not (folder / "steering.json").is_file():
        return
    sweep = json.loads((folder / "steering.json").read_text(encoding="utf-8"))
    title = "Steering by the latent that foretells self-reflection"
    lines, verdict = _steering_lines(sweep), _steering_verdict(sweep)
    figures, figure = [], folder / "figures" / "steering.png"
    if figure.is_file():
        shown.figures[f"{_STEERING}/steering.png"] = figure
        figures.append(_figure(f"{_STEERING}/steering.png", figure, alt=f"{title}: {_described('steering')}"))
    shown.experiments.append(
        {
            "name": _STEERING,
            "title": title,
            "claim": "Adding the decoder direction of a self-reflection latent makes the distilled model "
            "over-think.",
            "verdict": verdict,
            "lines": lines,
            "figures": figures,
            "tables": [],
            "made_from": None,
            "is_complete": True,
        }
    )


def _directions(sweep: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The latent, and what it is compared with."""
    first, *controls = sweep
    if not first.startswith("latent ") or not controls:
        raise ValueError(f"expected a latent and its controls, got {list(sweep)}.")
    return first, controls


def _steering_lines(sweep: Mapping[str, Any]) -> list[str]:
    _, controls = _directions(sweep)
    rows = [("direction", "strength", *(head for _, head in _STEERING_COLUMNS), "  regime")]
    for direction, points in sweep.items():
        for point in points:
            figures = [f"{point[key]:.2f}" for key, _ in _STEERING_COLUMNS]
            rows.append((direction, f"{point['strength']:+.1f}", *figures, f"  {point['regime']}"))
    n_answers = next(iter(sweep.values()))[0]["n_answers"]
    return [
        f"{n_answers} held-out problems for each row; steered at full stops; strength in units of the mean "
        "residual norm; figures are means per answer.",
        f"Controls, of the same norm: {', '.join(controls)}.",
        "",
        *((f"{name:24}" + "".join(f"{cell:>13}" for cell in cells)).rstrip() for name, *cells in rows),
    ]


def _steering_verdict(sweep: Mapping[str, Any]) -> str:
    """The latent's figures at the largest strength either way, beside those of every control there."""
    latent, controls = _directions(sweep)
    at = {name: {point["strength"]: point for point in points} for name, points in sweep.items()}
    plain = at[latent][0.0]
    said = [
        f"Unsteered: {plain['reflections_per_answer']:.2f} reflections per answer, "
        f"accuracy {plain['accuracy']:.2f}."
    ]
    for strength in (max(at[latent]), min(at[latent])):
        if strength == 0:
            continue
        here = at[latent][strength]
        beside = ", ".join(f"{name} {at[name][strength]['reflections_per_answer']:.2f}" for name in controls)
        said.append(
            f"At {strength:+.1f} {latent}: {here['reflections_per_answer']:.2f} reflections, accuracy "
            f"{here['accuracy']:.2f} ({here['regime']}); controls: {beside} reflections."
        )
    return " ".join(said)


def _told(err: Exception) -> str:
    """An error in one sentence, without the path that it happened at."""
    if isinstance(err, KeyError):
        return f"{err} is missing."
    if isinstance(err, OSError) and err.strerror:
        return f"{err.strerror}."
    return str(err).rstrip(".") + "."
