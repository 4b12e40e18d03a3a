"""Taking one's place under torchrun, and harvesting on several ranks."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from crosscoders.harvest import SplitHarvest
from crosscoders.parallel import ALONE, from_torchrun, is_main, ranks_of
from crosscoders.parallel.launch import _take_device
from crosscoders.sources import Source
from tests.parallel.rank_pool import on_ranks

PROGRAM = """
from crosscoders.parallel import from_torchrun, is_main, ranks_of
import torch.distributed as dist
mesh = from_torchrun(latent_shards=2)
ranks = ranks_of(mesh)
assert is_main() == ranks.is_main == (dist.get_rank() == 0)
assert dist.get_rank() == 2 * ranks.data.rank + ranks.latents.rank
open(f"{ranks.data.rank}-{ranks.latents.rank}", "x").close()
dist.barrier()  # nobody leaves while others still connect
dist.destroy_process_group()
"""


class Reads:
    """Two sources whose activations are functions of the ids, and which count what they read."""

    exclude_token_ids = (3,)
    sources = (Source(name="base", d_model=2), Source(name="distilled", d_model=3))

    def __init__(self) -> None:
        self.n_read = 0

    def harvest(self, tokens: Tensor) -> Tensor:
        """Five numbers for each id."""
        self.n_read += len(tokens)
        return tokens[..., None].float() * torch.tensor([1.0, -1.0, 0.5, 2.0, 3.0])


def harvested(tokens: Tensor, shape: tuple[int, int]) -> tuple[Tensor, int]:
    reads = Reads()
    split = SplitHarvest(reads, init_device_mesh("cpu", shape, mesh_dim_names=("data", "latents")))
    assert split.exclude_token_ids == (3,)
    return split.harvest(tokens), reads.n_read


@pytest.mark.parametrize(("n_sequences", "shape"), [(7, (2, 2)), (2, (2, 2)), (5, (3, 1)), (4, (1, 2))])
def test_every_rank_gets_all_activations_and_each_sequence_is_read_once(
    n_sequences: int, shape: tuple[int, int]
) -> None:
    tokens = torch.arange(n_sequences * 6).view(n_sequences, 6)
    parts = on_ranks(shape[0] * shape[1], harvested, tokens=tokens, shape=shape)
    assert all(torch.equal(activations, Reads().harvest(tokens)) for activations, _ in parts)
    assert sum(n_read for _, n_read in parts) == n_sequences
    assert max(n_read for _, n_read in parts) == math.ceil(math.ceil(n_sequences / shape[0]) / shape[1])


def test_without_torchrun_there_is_no_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert from_torchrun(latent_shards=2) is None
    assert ranks_of(None) is ALONE
    assert is_main()


def test_what_does_not_fit_the_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="latent_shards=3 does not divide 4 processes"):
        from_torchrun(latent_shards=3)
    with pytest.raises(ValueError, match="has no CUDA device of its own"):
        _take_device("2", n_devices=2)
    with pytest.raises(ValueError, match=r"LOCAL_RANK=\$SLURM_LOCALID"):
        _take_device(None, n_devices=2)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert from_torchrun() is None


@pytest.mark.slow
def test_torchrun_gives_every_process_its_place(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", "program.py"]
    paths = os.pathsep.join([os.environ.get("PYTHONPATH", ""), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.glob("?-?")} == {"0-0", "0-1", "1-0", "1-1"}
