"""How long `import crosscoders` takes beside `import torch`: the median of 5 fresh processes each.

Run: `python benchmarks/import_time.py`. The two are measured in turn, so that a machine that slows down
slows both. One warm-up process each writes the byte code and fills the disk cache.
"""

import statistics
import subprocess
import sys

N_PROCESSES = 5
STATEMENTS = {"torch": "import torch", "crosscoders": "import crosscoders"}
TIMER = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"


def seconds_of(statement: str) -> float:
    """Seconds that one statement takes in a fresh interpreter, its start-up left out."""
    command = [sys.executable, "-c", TIMER.format(statement)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Print one line for each import and the difference of the medians."""
    seconds: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for i in range(N_PROCESSES + 1):
        for name, statement in STATEMENTS.items():
            measured = seconds_of(statement)
            if i > 0:
                seconds[name].append(measured)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"import {name:12s} {median:.3f} s")
    print(f"beyond torch        {medians['crosscoders'] - medians['torch']:.3f} s")


if __name__ == "__main__":
    main()
