"""The CSV files: one row per measured quantity, appended by runs only."""

import csv
import dataclasses
import datetime
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.kernels.process import ROOT

RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One quantity: its identity, its median with the 20th and 80th percentiles, and where it was measured.

    All rows of a run carry the same timestamp, the run's start in UTC. `note` says why a value is missing, or
    what else a reader must know.
    """

    implementation: str
    version: str
    commit: str
    level: str
    op: str
    precision: str
    shape: str
    device: str
    cpu_model: str
    torch_version: str
    threads: int
    metric: str
    median: float | None
    p20: float | None
    p80: float | None
    unit: str
    timestamp: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Place:
    """What all rows of a run have in common."""

    commit: str
    device: str
    cpu_model: str
    threads: int
    timestamp: str


def quantiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """Median, 20th and 80th percentile."""
    median, p20, p80 = np.percentile(samples, [50, 20, 80])
    return float(median), float(p20), float(p80)


def make_row(place: Place, fields: Mapping[str, str], *, samples: Sequence[float] = ()) -> Row:
    """A row of this run.

    Args:
        place: What all rows share.
        fields: The other columns; those that are left out are empty.
        samples: Measured values; none makes an empty value.
    """
    median, p20, p80 = quantiles(samples) if len(samples) else (None, None, None)
    text: dict[str, Any] = dict.fromkeys(
        ("implementation", "version", "level", "op", "precision", "shape", "torch_version", "metric", "unit"),
        "",
    )
    values: dict[str, Any] = {"median": median, "p20": p20, "p80": p80}
    return Row(**{**text, **dataclasses.asdict(place), **values, **fields})


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to a file, with a header if it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [field.name for field in dataclasses.fields(Row)]
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        if is_new:
            writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(value) for name, value in dataclasses.asdict(row).items()})


def read_rows(path: Path) -> list[Row]:
    """All rows of a file.

    Raises:
        ValueError: The columns are not those of `Row`.
    """
    names = [field.name for field in dataclasses.fields(Row)]
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != names:
            raise ValueError(f"{path}: expected columns {names}, got {reader.fieldnames}.")
        return [_row_of(cells) for cells in reader]


def latest_run(rows: Sequence[Row]) -> list[Row]:
    """The rows of the run that started last."""
    newest = max((row.timestamp for row in rows), default="")
    return [row for row in rows if row.timestamp == newest]


def place_of_run(device: str, *, n_threads: int) -> Place:
    """Commit, machine and time of a run that starts now."""
    return Place(
        commit=_commit(),
        device=torch.cuda.get_device_name() if device == "cuda" else device,
        cpu_model=_cpu_model(),
        threads=n_threads,
        timestamp=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _cell(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def _row_of(cells: dict[str, str]) -> Row:
    values: dict[str, Any] = dict(cells)
    for name in ("median", "p20", "p80"):
        values[name] = float(cells[name]) if cells[name] else None
    return Row(**{**values, "threads": int(cells["threads"])})


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short", "HEAD") or "unknown"
    return f"{commit}-dirty" if git("status", "--porcelain", "--", "src", "benchmarks/kernels") else commit


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", path.read_text(), re.M) if path.exists() else None
    return found[1].strip() if found else platform.processor()
