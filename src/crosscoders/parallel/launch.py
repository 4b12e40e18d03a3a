"""Taking one's place in a run that `torchrun` started, or what sets the same variables."""

import os
from typing import Literal

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from crosscoders._typing import typed

_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
_SET_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@typed
def from_torchrun(*, latent_shards: int = 1, device: Literal["cpu", "cuda"] = "cpu") -> DeviceMesh | None:
    """The mesh of a run under `torchrun`: each batch in `world / latent_shards` parts, latents in so many.

    The ranks of one part of the batch, which exchange most, stand next to each other. On "cuda" this process
    takes the device of its `LOCAL_RANK` as the current one.

    Args:
        latent_shards: Parts into which the latents are split.
        device: Kind of device that trains; "cpu" talks by gloo, "cuda" by NCCL.

    Returns:
        A mesh with the dimensions "data" and "latents" for `Trainer(mesh=...)`; None where `torchrun` did not
        start this process, or no other beside it.

    Raises:
        ValueError: `latent_shards` does not divide the number of processes, or this one has no device or
            cannot tell which of several is its own.
    """
    if not all(name in os.environ for name in _SET_BY_TORCHRUN):
        return None
    n = n_ranks()
    if latent_shards < 1 or n % latent_shards:
        raise ValueError(
            f"from_torchrun: latent_shards={latent_shards} does not divide {n} processes; choose a "
            "divisor, or another torchrun --nproc-per-node."
        )
    if n == 1:
        return None
    if device == "cuda":
        _take_device(os.environ.get("LOCAL_RANK"), n_devices=torch.cuda.device_count())
    if not dist.is_initialized():
        dist.init_process_group(_BACKENDS[device])
    shape = (n // latent_shards, latent_shards)
    return init_device_mesh(device, shape, mesh_dim_names=("data", "latents"))


@typed
def is_main() -> bool:
    """Whether this process is the one that writes and reports: rank 0, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0 if not dist.is_initialized() else dist.get_rank() == 0


@typed
def n_ranks() -> int:
    """Number of processes that the launcher started for this run; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@typed
def leave() -> None:
    """Give the place up at the end of a run; nothing where there was none."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _take_device(local_rank: str | None, *, n_devices: int) -> None:
    if local_rank is None and n_devices > 1:
        raise ValueError(
            f"from_torchrun: LOCAL_RANK is not set and this process sees {n_devices} CUDA devices; set it to "
            "the process's number on its machine (under Slurm LOCAL_RANK=$SLURM_LOCALID), or use torchrun."
        )
    index = int(local_rank or 0)
    if index >= n_devices:
        raise ValueError(
            f"from_torchrun: process {index} of this machine has no CUDA device of its own, there are "
            f"{n_devices}; start torchrun --nproc-per-node={max(n_devices, 1)}, or pass device='cpu'."
        )
    torch.cuda.set_device(index)
