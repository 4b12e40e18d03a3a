"""`ModelConfig`: which model of a pair, in which precision and where."""

from dataclasses import dataclass

import torch

from crosscoders._typing import typed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One model of a run.

    Args:
        path: Folder or Hub id, or a label if a module is passed.
        revision: Hub revision (commit, tag or branch); None for the default branch.
        dtype: "float32", "bfloat16" or "float16": dtype of the weights, and in which the model computes.
        device: Torch device on which it reads; None for the run's.
        offload: Keep the weights in CPU memory and move them to the device only while the model reads.

    Raises:
        ValueError: An empty path, or a dtype that models are not read in.
    """

    path: str
    revision: str | None = None
    dtype: str = "float32"
    device: str | None = None
    offload: bool = False

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("ModelConfig: path is empty; give a folder or a Hub id.")
        if self.dtype not in DTYPES:
            raise ValueError(
                f"ModelConfig {self.path!r}: dtype must be one of {sorted(DTYPES)}, got {self.dtype!r}."
            )
        if self.device is not None:
            check_device_name(self.device, where=f"ModelConfig {self.path!r}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return DTYPES[self.dtype]


@typed
def check_device_name(device: str, *, where: str) -> torch.device:
    """The device that a string names, whether or not this machine has it.

    Args:
        device: Such as "cpu", "cuda" or "cuda:1".
        where: Start of the message.

    Raises:
        ValueError: No torch device is called that.
    """
    try:
        return torch.device(device)
    except RuntimeError as err:
        raise ValueError(
            f"{where}: device must be a torch device such as 'cpu', 'cuda' or 'cuda:1', got {device!r}."
        ) from err


@typed
def check_device_exists(device: str, *, where: str) -> None:
    """Check that this machine has a device, before anything is loaded for it.

    Args:
        device: Such as "cpu" or "cuda:1".
        where: Start of the message.

    Raises:
        ValueError: It does not.
    """
    wanted = check_device_name(device, where=where)
    if wanted.type == "cpu":
        return
    try:
        torch.empty(1, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError) as err:
        raise ValueError(
            f"{where}: device {device!r} cannot be used on this machine ({str(err).splitlines()[0]}); "
            f"CUDA devices here: {torch.cuda.device_count()}."
        ) from err
