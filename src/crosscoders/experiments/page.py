"""The index page of a reproduction: every finding with its figures, in one file without scripts."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from crosscoders._io import atomic_write_text
from crosscoders._typing import typed
from crosscoders.experiments.study import Finding
from crosscoders.pipeline.config import RunConfig

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-top: 1px solid #8884; padding-top: 1rem; }
img { max-width: 100%; height: auto; background: #fff; }
pre { overflow-x: auto; font-size: 13px; line-height: 1.35; }
dl { display: grid; grid-template-columns: 5.5rem 1fr; gap: .3rem .8rem; }
dt { font-weight: 600; } dd { margin: 0; }
.skipped { opacity: .7; }
nav li { margin: .15rem 0; }
"""


@typed
def write_index(
    folder: Path,
    *,
    title: str,
    runs: Mapping[str, RunConfig],
    summaries: Mapping[str, str],
    findings: Mapping[str, Finding],
    skipped: Mapping[str, str],
    seconds: Mapping[str, float],
) -> None:
    """Write `index.html`; its links are relative, so the folder can be moved and opened from disk.

    Args:
        folder: The folder of the reproduction.
        title: Heading.
        runs: Configuration of each run by its name.
        summaries: What each run printed, by the run's folder.
        findings: Findings by their folder.
        skipped: Reasons of experiments that were left out, by the folder they would have had.
        seconds: How long each step took, by folder, where it ran.
    """
    items = [
        f'<li><a href="#{_text(at)}">{_text(at)}</a>: {_text(finding.title)}</li>'
        for at, finding in findings.items()
    ]
    body = [
        f"<h1>{_text(title)}</h1>",
        "<p>Each experiment says what the paper reports, what shows here, and what the controls say. "
        "All numbers lie in the CSV files.</p>",
        f"<p>Crosscoders:</p><ul>{''.join(_config(name, config) for name, config in runs.items())}</ul>",
        f"<nav><p>Experiments:</p><ul>{''.join(items)}</ul></nav>",
        *(_finding(at, finding, seconds.get(at)) for at, finding in findings.items()),
        *(f'<h2 class="skipped">{_text(at)}: skipped</h2><p>{_text(why)}</p>' for at, why in skipped.items()),
        *(_run(at, summary) for at, summary in summaries.items()),
    ]
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body>{''.join(body)}</body></html>\n"
    )
    atomic_write_text(folder / "index.html", page)


def _finding(at: str, finding: Finding, seconds: float | None) -> str:
    figures = "".join(
        f'<p><a href="{_text(at)}/{_text(name)}.svg"><img src="{_text(at)}/{_text(name)}.png" '
        f'alt="{_text(finding.title)}: {_text(name)}"></a></p>'
        for name in finding.figures
    )
    lines = "\n".join(finding.lines)
    links = _links(at, (*finding.tables, "summary.txt"))
    took = "" if seconds is None else f" ({seconds:.0f} s)"
    return (
        f'<h2 id="{_text(at)}">{_text(finding.title)} <small>({_text(at)})</small></h2><dl>'
        f"<dt>Paper</dt><dd>{_text(finding.claim or 'nothing of the kind.')}</dd>"
        f"<dt>Here</dt><dd>{_text(finding.verdict)}</dd>"
        f"<dt>Data</dt><dd>{links}{took}</dd></dl>{figures}"
        f"<details><summary>The numbers as text</summary><pre>{_text(lines)}</pre></details>"
    )


def _config(name: str, config: RunConfig) -> str:
    objective = ", ".join(f"{term.name} x {term.weight:g}" for term in config.objective) or "default"
    said = (
        f"{config.activation_fn}, {objective}; {config.n_latents} latents at {config.hook_name} of "
        f"{' and '.join(model.path for model in config.models().values())}; seed {config.seed}"
    )
    return f"<li><b>{_text(name)}</b>: {_text(said)}</li>"


def _run(at: str, summary: str) -> str:
    links = _links(at, ("run.json", "latents.csv", "evaluation.json"))
    return f"<h2>Run {_text(at)}</h2><p>{links}</p><pre>{_text(summary)}</pre>"


def _links(at: str, names: Sequence[str]) -> str:
    return ", ".join(f'<a href="{_text(at)}/{_text(name)}">{_text(name)}</a>' for name in names)


def _text(text: str) -> str:
    return html.escape(text, quote=True)
