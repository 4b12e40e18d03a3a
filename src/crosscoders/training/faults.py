"""What to say when a run cannot go on: weights that diverge, too little memory, a full disk."""

import errno
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crosscoders.errors import DivergedError
from crosscoders.training.checkpoints.files import has_checkpoint, latest_checkpoint

if TYPE_CHECKING:
    from crosscoders.training.trainer import Trainer

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TORCH_CANNOT_WRITE = ("inline_container", "PytorchStreamWriter", "iostream")  # in a RuntimeError


@contextmanager
def step_faults(
    trainer: "Trainer", *, number: int, position: Callable[[], dict[str, Any]], batch: object
) -> Iterator[None]:
    """Say more about an error of a step: which batch it was, where to go back to, what to lower.

    Args:
        trainer: Whose step it is.
        number: Number of the batch, from 1.
        position: Where the data stand after it, where that is known.
        batch: The batch itself.

    Raises:
        DivergedError: The gradient or the loss was not finite.
        torch.OutOfMemoryError: There was no memory left, on a device or of the machine.
    """
    try:
        yield
    except DivergedError as err:
        place = f"It was found at batch {number}{_place(position())}."
        raise DivergedError(f"{err} {place} {_way_back(trainer.checkpoint_dir)}") from err
    except RuntimeError as err:
        if not _is_out_of_memory(err):
            raise
        n_rows = len(batch) if isinstance(batch, Tensor) else 0
        raise torch.OutOfMemoryError(_memory_message(trainer, n_rows=n_rows, reason=err)) from err


@contextmanager
def harvest_faults() -> Iterator[None]:
    """Say what to lower where there was no memory to make the next batch.

    Raises:
        torch.OutOfMemoryError: There was not.
    """
    try:
        yield
    except RuntimeError as err:
        if not _is_out_of_memory(err):
            raise
        raise torch.OutOfMemoryError(
            f"Trainer.fit: out of memory while the next batch was made{_free_memory()}. Lower "
            "data.sequences_per_harvest or data.sequence_length, which the models read at once, or "
            f"data.buffer_bytes; or put a model on another device. ({_first_line(err)})"
        ) from err


@contextmanager
def checkpoint_faults(trainer: "Trainer") -> Iterator[None]:
    """Refuse a checkpoint that does not fit on the disk, and say which one could not be written, and why.

    Raises:
        OSError: The disk is too full, before or while it is written; older checkpoints are untouched.
    """
    assert trainer.checkpoint_dir is not None
    needed = state_bytes(trainer)
    free = _free_bytes(trainer.checkpoint_dir)
    if trainer.ranks.are_alone and free is not None and free < needed:  # ranks fail together, when they write
        raise OSError(errno.ENOSPC, _disk_message(trainer, needed=needed, reason="No space left on device"))
    try:
        yield
    except OSError as err:
        if err.errno not in _FULL:
            raise
        reason = _disk_message(trainer, needed=needed, reason=err.strerror or str(err))
        raise OSError(err.errno, reason) from err
    except RuntimeError as err:
        if not any(mark in str(err) for mark in _TORCH_CANNOT_WRITE):
            raise
        reason = _disk_message(trainer, needed=needed, reason="File was not written to its end")
        raise OSError(errno.EIO, reason) from err


def state_bytes(trainer: "Trainer") -> int:
    """Bytes of the tensors that a checkpoint of this process keeps: weights, moments, calibration batches."""
    state = (trainer.crosscoder.state_dict(), trainer.optimizer.state_dict(), trainer._ring.batches)
    return sum(tensor.nbytes for tensor in _tensors(state))


def _tensors(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, Mapping):
        for value in nested.values():
            yield from _tensors(value)
    elif isinstance(nested, list | tuple):
        for value in nested:
            yield from _tensors(value)


def _place(position: Mapping[str, Any]) -> str:
    """Where the data stood, if their own state tells it."""
    state = position.get("state")
    if not isinstance(state, Mapping) or not {"epoch", "window", "served"} <= state.keys():
        return ""
    return f" (epoch {state['epoch']}, window {state['window']}, {state['served']} of its rows served)"


def _way_back(folder: Path | None) -> str:
    if folder is None or not has_checkpoint(folder):
        return "There is no checkpoint to go back to; checkpoint_every_steps writes them."
    return f"The last good checkpoint is {latest_checkpoint(folder)}."


def _is_out_of_memory(err: RuntimeError) -> bool:
    return isinstance(err, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(err)


def _memory_message(trainer: "Trainer", *, n_rows: int, reason: Exception) -> str:
    crosscoder = trainer.crosscoder
    weights = sum(p.nbytes for p in crosscoder.parameters())
    latents = n_rows * crosscoder.n_latents * 4
    return (
        f"Trainer: out of memory in step {trainer.step}{_free_memory()}. On this device lie weights of "
        f"{_gb(weights)}, their gradients ({_gb(weights)} again) and Adam's moments ({_gb(2 * weights)}); a "
        f"dense float32 matrix of {n_rows} rows and {crosscoder.n_latents} latents is {_gb(latents)}, of "
        "which a step may hold several. Lower data.batch_tokens (half of it halves that matrix) or n_latents "
        f"(half of it halves all of them). ({_first_line(reason)})"
    )


def _free_memory() -> str:
    if not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info()
    return f" ({_gb(free)} of the device's {_gb(total)} are free)"


def _disk_message(trainer: "Trainer", *, needed: int, reason: str) -> str:
    folder = trainer.checkpoint_dir
    assert folder is not None
    free = _free_bytes(folder)
    shown = "an unknown number of" if free is None else f"{free:,}"
    return (
        f"{reason}: the checkpoint of step {trainer.step} in {folder} needs about {needed:,} bytes, and "
        f"{shown} are free there. {_way_back(folder)} Make room and resume; fewer checkpoints_kept or "
        "milestones need less."
    )


def _free_bytes(folder: Path) -> int | None:
    """Free bytes of the disk that holds a folder, or the first parent of it that exists."""
    at = next((path for path in (folder, *folder.absolute().parents) if path.exists()), None)
    return None if at is None else shutil.disk_usage(at).free


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.3g} GB"


def _first_line(err: BaseException) -> str:
    return str(err).split("\n", 1)[0]
