"""Command line: `python -m benchmarks.planted {train,measure,calibrate,score,table,all} --cache FOLDER`."""

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.planted.calibrate import calibrate, calibration_lines
from benchmarks.planted.measure import measure_into
from benchmarks.planted.recipes import ARCHITECTURES, STANDARD
from benchmarks.planted.score import crosscoder_records, score_all
from benchmarks.planted.settings import (
    SETTINGS,
    Case,
    architecture_cases,
    calibration_cases,
    scored_cases,
)
from benchmarks.planted.table import PAGE, RESULTS, load, markdown, page
from benchmarks.planted.train import train_into
from crosscoders.diffing.verdicts import Thresholds

STEPS = ("train", "measure", "calibrate", "score", "table", "all")
PARTS = {
    "calibration": calibration_cases,
    "scored": scored_cases,
    "architectures": partial(architecture_cases, ARCHITECTURES),
}


def run_all(job: Callable[..., str], cases: Sequence[Case], *, cache: Path, jobs: int) -> None:
    """Run one step on many cases, each in a process of one thread; prints each when it is done."""
    cache.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for line in pool.map(partial(job, cache=cache), cases):
            print(line, flush=True)


def record(path: Path, **parts: Any) -> dict[str, Any]:
    """Replace parts of the results file."""
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results |= parts
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def _calibrate(cache: Path, out: Path) -> None:
    found = calibrate(cache)
    record(out, calibration=found, settings=list(SETTINGS), standard=STANDARD.name)
    print("\n".join(calibration_lines(found)))


def _score(cache: Path, out: Path) -> None:
    thresholds = Thresholds()
    results = record(
        out,
        thresholds=dataclasses.asdict(thresholds),
        scores=score_all(cache, thresholds),
        crosscoders=crosscoder_records(cache),
    )
    print(markdown(results))


def main() -> None:
    """Run one step, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planted", description=__doc__)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--cache", type=Path, required=True, help="folder for crosscoders and measures")
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument(
        "--part", choices=list(PARTS), nargs="*", default=list(PARTS), help="of train, measure"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    cache, step = arguments.cache, arguments.step
    cases = list({case.name: case for part in arguments.part for case in PARTS[part]()}.values())
    if step in ("train", "all"):
        run_all(train_into, cases, cache=cache, jobs=arguments.jobs)
    if step in ("measure", "all"):
        run_all(measure_into, cases, cache=cache, jobs=arguments.jobs)
    if step in ("calibrate", "all"):
        _calibrate(cache, arguments.out)
    if step in ("score", "all"):
        _score(cache, arguments.out)
    if step in ("table", "all"):
        PAGE.write_text(page(load(arguments.out)), encoding="utf-8")


if __name__ == "__main__":
    main()
