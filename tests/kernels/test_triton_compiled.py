"""The sparse kernels compile for Hopper at real shapes, without a GPU, and keep everything in registers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("compile_sm90.py")
KERNELS = ["decode", "split", "gradient", "gradient_adam", "sum_dots", "adam", "norms"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
        "TRITON_DEFAULT_FP_FUSION": "1",  # said because triton 3.9 warns where it is not
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    run = subprocess.run([sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)["kernels"]


@pytest.mark.slow
def test_every_kernel_compiles_at_every_shape(compiled: dict[str, dict[str, Any]]):
    shapes = {name.rsplit(" ", 2)[0] for name in compiled}
    assert len(shapes) == 8
    expected = {f"{shape} _{kernel}_kernel" for shape in shapes for kernel in KERNELS}
    assert {name.rsplit(" ", 1)[0] for name in compiled} == expected


@pytest.mark.slow
def test_nothing_spills_and_enough_programs_fit_a_multiprocessor(compiled: dict[str, dict[str, Any]]):
    for name, used in compiled.items():
        assert used["spills"] == used["stack"] == 0, (name, used)
        assert used["registers"] <= 128, (name, used)  # 16 one-warp programs of 128 registers are resident
