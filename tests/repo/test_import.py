"""`import crosscoders` is cheap and quiet, in a fresh process."""

import os
import re
import subprocess
import sys

import pytest

from tests.repo.source_tree import PACKAGE, ROOT

HEAVY = [
    "transformer_lens",
    "transformers",
    "huggingface_hub",
    "triton",
    "wandb",
    "matplotlib",
    "plotly",
    "pandas",
]


def run_fresh(*arguments: str) -> str:
    """Output of a fresh interpreter that sees this checkout's package."""
    path = os.pathsep.join([str(PACKAGE.parent), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_import_prints_nothing_and_loads_nothing_heavy() -> None:
    check = f"import sys, crosscoders; print([m for m in {HEAVY} if m in sys.modules])"
    assert run_fresh("-W", "error", "-c", check) == "[]\n"


def test_import_touches_no_random_state_and_no_thread_count() -> None:
    state = "torch.get_rng_state().sum().item(), torch.get_num_threads(), torch.is_grad_enabled()"
    check = f"import torch; a = ({state}); import crosscoders; print(a == ({state}))"
    assert run_fresh("-c", check) == "True\n"


@pytest.mark.slow
def test_import_costs_little_beside_torch() -> None:
    """At most 0.3 s where torch takes 0.8 s; as a ratio, so that a busy machine does not decide."""
    report = run_fresh("benchmarks/import_time.py")
    seconds = {name: float(value) for name, value in re.findall(r"import (\w+)\s+([\d.]+) s", report)}
    extra = seconds["crosscoders"] - seconds["torch"]
    assert extra <= max(0.3, 0.375 * seconds["torch"]), report


@pytest.mark.slow
def test_every_module_imports_alone() -> None:
    """No module relies on another having been imported before it."""
    names = [p.relative_to(PACKAGE.parent).with_suffix("") for p in sorted(PACKAGE.rglob("*.py"))]
    modules = [".".join(name.parts).removesuffix(".__init__") for name in names if name.name != "__main__"]
    check = (
        "import importlib, sys, torch, jaxtyping, beartype\n"
        f"for name in {modules}:\n"
        "    for loaded in [m for m in sys.modules if m.split('.')[0] == 'crosscoders']:\n"
        "        del sys.modules[loaded]\n"
        "    importlib.import_module(name)\n"
        "print('done')"
    )
    assert run_fresh("-c", check) == "done\n"
