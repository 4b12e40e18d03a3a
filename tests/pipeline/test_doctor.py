"""The doctor finds nothing wrong here, and each thing that is made wrong."""

import argparse
import os
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch

from crosscoders.pipeline.installation import machine
from crosscoders.pipeline.installation.checks import Check, guarded
from crosscoders.pipeline.installation.doctor import Diagnosis, add_doctor_arguments, doctor, doctor_command
from crosscoders.pipeline.installation.kernels import _check_backend, check_kernels, trained_weights
from crosscoders.pipeline.installation.machine import available_memory, check_disk, check_hub
from crosscoders.pipeline.installation.software import check_cuda, check_packages, check_torch
from tests.repo.source_tree import ROOT


def versions(**installed: str) -> Callable[[str], str]:
    """A table of installed versions in place of this machine's."""

    def version_of(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    return version_of


def levels(checks: list[Check]) -> dict[str, str]:
    """Level of each check by its name."""
    return {check.name: check.level for check in checks}


def test_this_installation_has_no_fault_and_nothing_is_left_behind(tmp_path: Path) -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    state = torch.get_rng_state()
    found = doctor(tmp_path, requirements=wanted)
    assert found.is_ok, found.text()
    assert [check.name for check in found.checks].count("packages") == 1
    assert not list(tmp_path.iterdir())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("requirement", "installed", "level"),
    [
        ("torch>=2.13", "2.13.0+cpu", "ok"),
        ("torch>=2.13", "2.9.1", "fault"),
        ("torch>=2.13", "2.13", "ok"),
        ("torch>=2.13.0", "2.13", "ok"),
        ("torch<6,>=5.23", "6.0.0", "fault"),
        ("torch<6,>=5.23", "5.100", "ok"),
        ("torch", "0.1", "ok"),
        ('torch>=2; extra == "wandb"', "1.9", "warning"),
        ("torch (>=2.13) ; python_version > '3'", "2.12.9", "fault"),
    ],
)
def test_versions_are_compared_as_numbers(requirement: str, installed: str, level: str) -> None:
    found = check_packages([requirement], version_of=versions(torch=installed))
    assert max(found, key=lambda c: ["ok", "warning", "fault"].index(c.level)).level == level
    if level != "ok":
        assert 'pip install "' in next(c for c in found if c.level == level).advice


def test_a_missing_package_is_a_fault_and_a_missing_extra_is_none() -> None:
    wanted = ["numpy>=2", 'wandb>=1; extra == "wandb"', 'pytest>=8; extra == "test"']
    assert levels(check_packages(wanted, version_of=versions(pytest="1"))) == {
        "library": "ok",
        "numpy": "fault",
        "packages": "ok",
    }
    assert levels(check_packages(None)) == {"library": "ok", "packages": "warning"}


def test_every_requirement_of_the_project_can_be_read() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [
        f'{line}; extra == "{name}"' for name, r in project["optional-dependencies"].items() for line in r
    ]
    found = check_packages([*project["dependencies"], *extras])
    assert not [check for check in found if "cannot be understood" in check.found]
    assert not [check for check in found if check.level == "fault"]


def test_every_kernel_of_the_cpu_is_tested_beside_the_reference() -> None:
    found = check_kernels()
    names = [check.name for check in found if check.name.endswith("cpu")]
    assert names == ["kernels 'dense' on cpu", "kernels 'cpu' on cpu"]
    assert {check.level for check in found} == {"ok"}


@pytest.mark.parametrize("offset", [1e-3, float("nan")])
def test_a_kernel_that_differs_is_a_fault(offset: float) -> None:
    expected = trained_weights("reference", "cpu")
    expected["b_dec"] = expected["b_dec"] + offset
    check = _check_backend("cpu", "cpu", expected)
    assert check.level == "fault"
    assert 'training.backend = "dense"' in check.advice


def test_a_kernel_that_cannot_run_is_a_fault_that_names_the_error() -> None:
    check = _check_backend("cpu", "meta", {})
    assert check.level == "fault"
    assert "the weights are on meta" in check.found


def test_a_check_that_raises_is_a_fault_and_the_others_go_on() -> None:
    def broken() -> list[Check]:
        raise RuntimeError("no driver")

    [check] = guarded("CUDA", broken)
    assert check.level == "fault"
    assert "RuntimeError: no driver" in check.line()
    assert not Diagnosis(checks=(check,)).is_ok


@pytest.mark.parametrize(("free", "level"), [(10**8, "fault"), (5 * 10**9, "warning"), (10**12, "ok")])
def test_little_disk_is_said(tmp_path: Path, free: int, level: str) -> None:
    found = check_disk(tmp_path / "not" / "yet", free_bytes=free)
    assert found[0].level == level
    assert str(tmp_path) in found[0].found
    assert bool(found[0].advice) == (level != "ok")


def test_a_folder_that_cannot_be_written_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    [check] = check_disk(tmp_path / "file" / "run")
    assert check.level == "fault"
    assert "is no folder" in check.found
    if os.geteuid() != 0:  # root may write anywhere
        tmp_path.chmod(0o500)
        assert levels(check_disk(tmp_path))["writing"] == "fault"


def test_memory_is_what_the_container_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  1000 kB\nMemAvailable:  800 kB\n")
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "_CGROUP_LIMITS", (tmp_path / "max",))
    for limit, expected in (("max", (819200, 1024000)), ("512000", (512000, 512000))):
        (tmp_path / "max").write_text(f"{limit}\n")
        assert available_memory() == expected
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "none")
    assert available_memory() == (None, None)


def test_the_hub_says_whether_it_is_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "hub" / "models--one").mkdir(parents=True)
    [check] = check_hub()
    assert check.level == "ok"
    assert check.found.startswith("offline")
    assert "1 models" in check.found
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert check_hub()[0].found.startswith("online")


def test_more_threads_than_processors_are_advised_against() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(len(os.sched_getaffinity(0)) + 3)
        assert check_torch()[0].level == "warning"
        assert "OMP_NUM_THREADS=" in check_torch()[0].advice
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without CUDA shows")
def test_no_device_is_no_fault() -> None:
    assert levels(check_cuda())["CUDA"] in ("ok", "warning")


@pytest.mark.gpu
def test_devices_are_listed_and_their_kernels_agree() -> None:
    assert all(check.name.startswith("cuda:") for check in check_cuda())
    assert {check.level for check in check_kernels()} == {"ok"}
    assert any("cuda:0" in check.name for check in check_kernels())


def test_the_command_prints_a_line_per_check_and_exits_with_1_on_a_fault(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_doctor_arguments(parser)
    text, code = doctor_command(parser.parse_args(["--out", str(tmp_path)]))
    *lines, blank, numbers = text.splitlines()
    assert code == 0
    assert blank == ""
    assert numbers.startswith("0 faults, ")
    assert all(line.split()[0] in ("ok", "warning") for line in lines)
    (tmp_path / "file").write_text("")
    text, code = doctor_command(parser.parse_args(["--out", str(tmp_path / "file" / "x")]))
    assert code == 1
    assert "1 fault, " in text
    with pytest.raises(ValueError, match="level must be one of"):
        doctor(tmp_path).count("bad")
