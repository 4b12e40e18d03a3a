"""The example package is built on the public surface alone and keeps the library's promises."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import crosscoders as cc
from crosscoders.errors import CheckpointError
from tests.repo.fenced import fenced_blocks, run_page

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "custom_trainer"


def run(*command: str, folder: Path, path: list[Path]) -> subprocess.CompletedProcess[str]:
    """Run Python with these folders on its path and nothing else of this process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_example_passes_its_own_tests(tmp_path: Path) -> None:
    """Among them the conformance checks, save and load, and exact resume."""
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE))
    done = run(*command, folder=tmp_path, path=[ROOT / "src"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b8 passed", done.stdout)


def test_the_readme_of_the_example_runs_and_what_it_saves_needs_its_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLE))
    page = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    assert run_page(fenced_blocks(page), name="README.md") == 2
    assert cc.from_pretrained(tmp_path / "my_crosscoder").config.activation_fn.kind == "block_topk"
    read = "import crosscoders; crosscoders.from_pretrained('my_crosscoder')"
    done = run("-c", read, folder=tmp_path, path=[ROOT / "src"])
    assert CheckpointError.__name__ in done.stderr
    assert "unknown kind 'block_topk'" in done.stderr
    assert "import the module that defines it first" in done.stderr


def test_the_example_imports_only_public_names() -> None:
    public = {"crosscoders", *(f"crosscoders.{name}" for name in ("activation_fns", "kernels"))}
    public |= {f"crosscoders.{name}" for name in ("losses", "testing", "training")}
    for path in EXAMPLE.rglob("*.py"):
        imported = re.findall(r"^from (crosscoders[\w.]*) import", path.read_text(encoding="utf-8"), re.M)
        assert set(imported) <= public, path


@pytest.mark.slow
def test_the_example_installs(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling, one of the dev tools, builds the package")
    site = tmp_path / "site"
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    install = ("-m", "pip", "install", *options, "--target", str(site), str(EXAMPLE))
    done = run(*install, folder=tmp_path, path=[])
    assert done.returncode == 0, done.stderr
    code = "import custom_crosscoder; print(custom_crosscoder.BlockTopK(n_blocks=2))"
    done = run("-c", code, folder=tmp_path, path=[site, ROOT / "src"])
    assert done.stdout.strip() == "BlockTopK(n_blocks=2, k_per_block=1)"
