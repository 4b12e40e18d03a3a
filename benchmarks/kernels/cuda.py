"""Checks before a GPU is measured: the GPU tests, and compute-sanitizer where it is installed."""

import shutil
import subprocess
import sys

from benchmarks.kernels.measure import say
from benchmarks.kernels.process import ROOT

_SMOKE = [sys.executable, "-m", "benchmarks.kernels.smoke"]


def check() -> None:
    """Run the GPU tests and the sanitizer; end the program if one of them finds something."""
    _must_pass("the kernels' GPU tests", [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/kernels"])
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        say("compute-sanitizer is not installed: memory and race checks are left out")
        return
    for tool in ("memcheck", "racecheck"):
        command = [sanitizer, "--tool", tool, "--error-exitcode", "1", *_SMOKE]
        _must_pass(f"compute-sanitizer {tool}", command)


def _must_pass(what: str, command: list[str]) -> None:
    say(f"== {what}")
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        sys.exit(f"{what} failed; nothing was measured")
