"""Doctor: packages, PyTorch, devices, Triton."""

import importlib.util
import os
import platform
import re
from collections.abc import Callable, Sequence
from importlib import metadata

import torch
import torch.distributed

from crosscoders._typing import typed
from crosscoders._version import __version__
from crosscoders.pipeline.installation.checks import Check
from crosscoders.pipeline.sizes import shown_bytes

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*\(?([^;)]*)\)?\s*(?:;\s*(.*))?")
_EXTRA = re.compile(r"""extra\s*==\s*["']([^"']+)["']""")
# Tools of those who work on the library: their absence concerns no user.
_EXTRAS_FOR_USERS = ("datasets", "plot", "tensorboard", "trackio", "wandb")
_ROOM_ON_A_DEVICE = 4_000_000_000  # bytes; less does not hold a small model and its crosscoder


def installed_requirements() -> list[str] | None:
    """What the metadata of this library asks for; None where it runs from its source, not installed."""
    try:
        return metadata.requires("crosscoders")
    except metadata.PackageNotFoundError:
        return None


@typed
def check_packages(
    requirements: Sequence[str] | None, *, version_of: Callable[[str], str] = metadata.version
) -> list[Check]:
    """Compare what is installed with what is asked for.

    Args:
        requirements: Lines such as "torch>=2.13" or 'wandb>=0.28; extra == "wandb"'; None if unknown.
        version_of: Version of an installed package; raises PackageNotFoundError where there is none.

    Returns:
        A line for the library itself, one for each requirement that is not met, and one for the others.
    """
    about = f"crosscoders {__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}"
    checks = [Check(name="library", level="ok", found=about)]
    if requirements is None:
        advice = "pip install crosscoders (or -e . in its source), so that versions can be compared"
        found = "crosscoders runs from its source and is not installed; no version was compared"
        return [*checks, Check(name="packages", level="warning", found=found, advice=advice)]
    met: list[str] = []
    for requirement in requirements:
        check = _check_package(requirement, version_of)
        if check is None:
            continue
        if check.level == "ok":
            met.append(check.found)
        else:
            checks.append(check)
    return [*checks, Check(name="packages", level="ok", found=", ".join(met) or "none")]


def _check_package(requirement: str, version_of: Callable[[str], str]) -> Check | None:
    """Whether one requirement is met; None if it concerns no user or another platform."""
    match = _REQUIREMENT.fullmatch(requirement.strip())
    if match is None:
        return Check(name="packages", level="warning", found=f"{requirement!r} cannot be understood")
    name, bounds, marker = match[1], match[2].strip(), match[3] or ""
    extra = _EXTRA.search(marker)
    if extra is not None and extra[1] not in _EXTRAS_FOR_USERS:
        return None
    wanted = f"crosscoders[{extra[1]}]" if extra else f"{name}{bounds}"
    try:
        version = version_of(name)
    except metadata.PackageNotFoundError:
        if extra is not None:
            return None  # not asked for
        advice = f'pip install "{wanted}"'
        return Check(name=name, level="fault", found="not installed", advice=advice)
    if all(_holds(version, bound) for bound in bounds.split(",") if bound):
        return Check(name="packages", level="ok", found=f"{name} {version}")
    level = "fault" if extra is None else "warning"
    return Check(name=name, level=level, found=f"{version}, not {bounds}", advice=f'pip install "{wanted}"')


def _holds(version: str, bound: str) -> bool:
    """Whether a version is within one bound; bounds are of the kinds >=, <, ==, !=, <=, >."""
    match = re.fullmatch(r"\s*(>=|<=|==|!=|<|>|~=)\s*([0-9.]+).*", bound)
    if match is None:
        return True
    here, there = _release(version), _release(match[2])
    width = max(len(here), len(there))
    here, there = (part + (0,) * (width - len(part)) for part in (here, there))
    return {
        ">=": here >= there,
        "~=": here >= there,
        "<=": here <= there,
        "==": here == there,
        "!=": here != there,
        "<": here < there,
        ">": here > there,
    }[match[1]]


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version before anything else: "2.13.0+cpu" is (2, 13, 0)."""
    found = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


@typed
def check_torch() -> list[Check]:
    """PyTorch's build, its threads beside the processors that this process may use, and its back ends."""
    n_threads, n_processors = torch.get_num_threads(), _n_processors()
    found = f"torch {torch.__version__}, {n_threads} threads on {n_processors} processors"
    threads = Check(name="torch", level="ok", found=found)
    if n_threads > n_processors:
        advice = f"set OMP_NUM_THREADS={n_processors}: threads that share a processor slow each other down"
        threads = Check(name="torch", level="warning", found=found, advice=advice)
    return [threads, _check_distributed()]


def _check_distributed() -> Check:
    if not torch.distributed.is_available():
        return Check(
            name="distributed",
            level="warning",
            found="this build of torch has no torch.distributed",
            advice="one process works; for several, install torch's own build",
        )
    kinds = {
        "gloo": torch.distributed.is_gloo_available(),
        "nccl": torch.distributed.is_nccl_available(),
    }
    found = ", ".join(name for name, is_there in kinds.items() if is_there) or "no backend"
    return Check(name="distributed", level="ok", found=found)


@typed
def check_cuda() -> list[Check]:
    """CUDA devices with their memory, or why there is none."""
    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            found = "none: this build of torch is for the CPU"
            return [Check(name="CUDA", level="ok", found=found)]
        return [
            Check(
                name="CUDA",
                level="warning",
                found=f"none, though torch is built for CUDA {torch.version.cuda}",
                advice="see that nvidia-smi lists a device, that its driver is recent enough, and that "
                f"CUDA_VISIBLE_DEVICES ({os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}) names one",
            )
        ]
    return [_check_device(index) for index in range(torch.cuda.device_count())]


def _check_device(index: int) -> Check:
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    found = (
        f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
        f"{shown_bytes(free)} of {shown_bytes(total)} free"
    )
    if free < _ROOM_ON_A_DEVICE:
        advice = "end what else runs on it (nvidia-smi lists it), or choose another device"
        return Check(name=f"cuda:{index}", level="warning", found=found, advice=advice)
    return Check(name=f"cuda:{index}", level="ok", found=found)


@typed
def check_triton() -> list[Check]:
    """Whether Triton is there; without it a CUDA device runs the dense step, which is slower."""
    if importlib.util.find_spec("triton") is None:
        level = "warning" if torch.cuda.is_available() else "ok"
        advice = "pip install triton: a training step on CUDA is slower without it" if level != "ok" else ""
        return [Check(name="Triton", level=level, found="not installed", advice=advice)]
    used = "runs the step on CUDA" if torch.cuda.is_available() else "unused without a CUDA device"
    return [Check(name="Triton", level="ok", found=f"{metadata.version('triton')}, {used}")]


def _n_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
