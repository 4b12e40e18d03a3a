"""Fixtures that every test may use, and the settings that make a run the same everywhere."""

import os
from collections.abc import Callable
from pathlib import Path

# Said before anything reads it: no test reaches the network by accident.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")

import pytest
import torch

# Without a GPU the Triton kernels are interpreted. Triton reads this when it is first imported, which any
# test may do, so it is said before all of them.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parent.parent

# One thread keeps sums in one order and leaves the second core to a second test process.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture
def generator() -> torch.Generator:
    """A fresh generator with a fixed seed."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def data_file() -> Callable[[str], Path]:
    """Path of a real data file by its name; skips the test, naming the file, where it is absent.

    The folder is `CROSSCODERS_DATA`, by default `../shared/data` beside the checkout. None of it is part of
    the repository.
    """
    folder = Path(os.environ.get("CROSSCODERS_DATA", ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        path = folder / name
        if not path.exists():
            pytest.skip(f"real data file {path} is missing; point CROSSCODERS_DATA at the folder that has it")
        return path

    return find
