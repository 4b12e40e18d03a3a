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


def state() -> str:
    """Driver, clocks and power of the GPU as nvidia-smi tells them; empty where it cannot be asked."""
    fields = "driver_version,clocks.sm,clocks.mem,power.draw,power.limit,mig.mode.current"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{fields}: {done.stdout.strip()}" if done.returncode == 0 else ""


def _must_pass(what: str, command: list[str]) -> None:
    say(f"== {what}")
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        sys.exit(f"{what} failed; nothing was measured")
