"""Command line: run a set, or write the tables."""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.kernels import cuda, tables
from benchmarks.kernels.measure import Part, run_parts, say
from benchmarks.kernels.results import RESULTS, append_rows, make_row, place_of_run, read_rows
from benchmarks.kernels.sets import cpu_parts, cuda_parts, tiny_parts


def run(parts: list[Part], *, device: str, n_threads: int, path: Path) -> None:
    """Run a set; each part's rows are on disk before the next begins."""
    place = place_of_run(device, n_threads=n_threads)
    for rows in run_parts(parts, place=place, n_threads=n_threads):
        if device == "cuda":
            fields = {
                "implementation": "machine",
                "level": "machine",
                "metric": "state",
                "note": cuda.state(),
            }
            rows.append(make_row(place, fields))
        append_rows(path, rows)
    say(f"rows of {place.timestamp} are in {path}")


def chosen_parts(arguments: argparse.Namespace) -> list[Part]:
    """The parts that the command line asks for."""
    if arguments.tiny:
        parts = tiny_parts()
    else:
        parts = cuda_parts() if arguments.device == "cuda" else cpu_parts()
    names = {part.name for part in parts}
    if unknown := set(arguments.only) - names:
        sys.exit(f"no part is named {sorted(unknown)}; the parts are {sorted(names)}")
    return [part for part in parts if not arguments.only or part.name in arguments.only]


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("command", nargs="?", choices=("run", "tables"), default="run")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of every process")
    parser.add_argument("--only", nargs="*", default=[], help="names of parts")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, nothing is recorded: does it run?")
    parser.add_argument("--skip-checks", action="store_true", help="cuda: no tests, no sanitizer")
    arguments = parser.parse_args()
    if arguments.command == "tables":
        tables.write_page()
        return
    parts = chosen_parts(arguments)
    if arguments.device == "cuda" and not arguments.skip_checks:
        cuda.check()
    if arguments.tiny:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tiny.csv"
            run(parts, device=arguments.device, n_threads=arguments.threads, path=path)
            print(tables.render(read_rows(path)))
        return
    path = RESULTS / f"{arguments.device}.csv"
    run(parts, device=arguments.device, n_threads=arguments.threads, path=path)
    tables.write_page()


if __name__ == "__main__":
    main()
