"""`crosscoders doctor`: whether an installation can do its work, and what to do where it cannot."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

from crosscoders._typing import typed
from crosscoders.pipeline.installation.checks import LEVELS, Check, guarded
from crosscoders.pipeline.installation.kernels import check_kernels
from crosscoders.pipeline.installation.machine import check_disk, check_hub, check_memory
from crosscoders.pipeline.installation.software import (
    check_cuda,
    check_packages,
    check_torch,
    check_triton,
    installed_requirements,
)


@final
@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What the doctor found.

    Args:
        checks: One for each thing that was looked at.
    """

    checks: tuple[Check, ...]

    @property
    def is_ok(self) -> bool:
        """Whether there is no fault; warnings are none."""
        return self.count("fault") == 0

    @typed
    def count(self, level: str) -> int:
        """How many checks ended with this level.

        Args:
            level: "ok", "warning" or "fault".

        Returns:
            Their number.

        Raises:
            ValueError: Another word.
        """
        if level not in LEVELS:
            raise ValueError(f"Diagnosis.count: level must be one of {LEVELS}, got {level!r}.")
        return sum(check.level == level for check in self.checks)

    def text(self) -> str:
        """One line per check, and how many of each kind there are."""
        counts = {level: self.count(level) for level in ("fault", "warning")}
        words = [f"{n} {level}{'' if n == 1 else 's'}" for level, n in counts.items()]
        numbers = ", ".join([*words, f"{self.count('ok')} ok"])
        return "\n".join([*(check.line() for check in self.checks), "", numbers])


@typed
def doctor(folder: Path | str = ".", *, requirements: Sequence[str] | None = None) -> Diagnosis:
    """Check versions, PyTorch, devices, Triton, kernels, disk, memory and the Hub's cache.

    Nothing is installed, downloaded or changed; a test file is written to the folder and removed. The kernels
    train a small crosscoder for a few steps beside the library's reference. It takes a few seconds.

    Args:
        folder: Where runs will be written.
        requirements: Requirements to compare installed versions with; None for the library's own.

    Returns:
        What was found.

    Example:
        >>> from crosscoders.pipeline.installation.doctor import doctor
        >>> doctor(requirements=["torch>=2.13"]).count("fault")
        0
    """
    wanted = installed_requirements() if requirements is None else requirements
    found = [
        *guarded("packages", partial(check_packages, wanted)),
        *guarded("torch", check_torch),
        *guarded("CUDA", check_cuda),
        *guarded("Triton", check_triton),
        *guarded("kernels", check_kernels),
        *guarded("disk", partial(check_disk, Path(folder))),
        *guarded("memory", check_memory),
        *guarded("Hub", check_hub),
    ]
    return Diagnosis(checks=tuple(found))


@typed
def add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `crosscoders doctor`.

    Args:
        parser: The command's parser.
    """
    parser.add_argument(
        "--out", type=Path, default=Path("."), help="folder in which runs will be written (default: this one)"
    )


@typed
def doctor_command(arguments: argparse.Namespace) -> tuple[str, int]:
    """Do what `crosscoders doctor` asks.

    Args:
        arguments: As `add_doctor_arguments` declares them.

    Returns:
        What to print, and the exit code: 1 if there is a fault.
    """
    found = doctor(arguments.out)
    return found.text(), 0 if found.is_ok else 1
