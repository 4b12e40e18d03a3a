"""A toy run on several ranks; also a program for torchrun: `-m tests.parallel.checkpoint_run FOLDER HOW`."""

import contextlib
import itertools
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing import assert_close

from crosscoders.activation_fns import ActivationFn, BatchTopK
from crosscoders.losses import AuxK, LossTerm, Reconstruction
from crosscoders.parallel.failure import one_clear_message
from crosscoders.training import Callback, StepReport, Trainer, TrainerConfig
from crosscoders.training.checkpoints.files import has_checkpoint, latest_checkpoint, read_checkpoint
from crosscoders.training.checkpoints.sharded import read_whole
from crosscoders.training.checkpoints.state import Key, map_tensors
from tests.core.toy import toy_crosscoder, toy_rows

Shape = dict[str, int]  # of a mesh, by the names of its dimensions; empty for a run without one

N_STEPS, BATCH, N_LATENTS, EVERY = 6, 32, 31, 3
ENDS = EVERY + 1  # of a disturbed run: behind the first checkpoint, before the second


class Ended(Exception):
    """The run was disturbed."""


class EndAt(Callback):
    """Ends the run after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        """Raise where it is time."""
        if report.step == self.step:
            raise Ended


def mesh_of(shape: Shape) -> DeviceMesh | None:
    """A mesh over all ranks."""
    if not shape:
        return None
    return init_device_mesh("cpu", tuple(shape.values()), mesh_dim_names=tuple(shape))


def batches(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Other rows for each step; the last batch has fewer rows than a mesh has ranks."""
    return list(toy_rows(N_STEPS * BATCH - 29, seed=11).to(dtype).split(BATCH))


def trainer_on(
    mesh: DeviceMesh | None,
    folder: str | None,
    *,
    activation_fn: ActivationFn | None = None,
    objective: list[LossTerm] | None = None,
    cls: type[Trainer] = Trainer,
    ends_after: int | None = None,
    dtype: torch.dtype = torch.float64,
    **config: Any,
) -> Trainer:
    """A trainer of 31 latents, which no mesh splits evenly, with dead latents and calibration."""
    numbers = {"lr": 1e-2, "log_every_steps": 0, "calibration_batches": 4, "dead_after_tokens": 2 * BATCH}
    saving = {} if folder is None else {"checkpoint_every_steps": EVERY}
    crosscoder = toy_crosscoder(activation_fn or BatchTopK(k=3, k_initial=8), n_latents=N_LATENTS)
    return cls(
        crosscoder.to(dtype),
        objective or [Reconstruction(), AuxK()],
        config=TrainerConfig.from_dict({**numbers, **saving, **config}),
        callbacks=[] if ends_after is None else [EndAt(ends_after)],
        checkpoint_dir=folder,
        mesh=mesh,
    )


def train(folder: str, shape: Shape, *, ends_after: int | None = None, **options: Any) -> int:
    """Train from the newest checkpoint, if there is one; gives the steps done."""
    trainer = trainer_on(mesh_of(shape), folder, ends_after=ends_after, **options)
    if has_checkpoint(Path(folder)):
        trainer.resume(folder)
    with contextlib.suppress(Ended):
        trainer.fit(batches(options.get("dtype", torch.float64)))
    return trainer.step


def resume_only(folder: str, shape: Shape) -> tuple[str, bool]:
    """What resuming raises, by its type and words, and whether the trainer is as it was."""
    trainer = trainer_on(mesh_of(shape), None)
    before = {key: tensor.clone() for key, tensor in trainer.crosscoder.state_dict().items()}
    try:
        trainer.resume(folder)
    except (ValueError, OSError) as err:
        after = trainer.crosscoder.state_dict()
        is_same = trainer.step == 0 and all(torch.equal(after[key], before[key]) for key in before)
        return f"{type(err).__name__}: {err}", is_same
    return "nothing", False


def save_whole(folder: str, shape: Shape, *, out: str, **options: Any) -> None:
    """Resume from the newest checkpoint and save the whole crosscoder."""
    trainer = trainer_on(mesh_of(shape), None, **options)
    trainer.resume(folder)
    whole = trainer.whole_crosscoder()
    if dist.get_rank() == 0:
        whole.save_pretrained(out)


def tensors_of(state: Mapping[str, Any]) -> dict[Key, Tensor]:
    """All tensors of a state by the way to them."""
    found: dict[Key, Tensor] = {}
    map_tensors(state, lambda key, tensor: found.update({key: tensor}))
    return found


def state_of(folder: Path) -> dict[str, Any]:
    """What the newest checkpoint holds, whoever wrote it."""
    path = latest_checkpoint(folder)
    return read_checkpoint(path) if (path / "state.pt").is_file() else read_whole(path)


def assert_same_state(got: Path, expected: Path) -> None:
    """Weights, moments, counters and calibration batches."""
    here, there = (tensors_of(state_of(folder)) for folder in (got, expected))
    assert here.keys() == there.keys()
    for key, tensor in here.items():
        assert_close(tensor, there[key], rtol=1e-9, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


def main(folder: str, *, how: str) -> None:
    """Train on the ranks of torchrun; rank 1 fails as told: "raise", "kill", or "write" (killed in it)."""
    dist.init_process_group("gloo")
    callbacks = {"raise": Failing(folder), "kill": Dying(folder)}
    mesh = mesh_of({"data": 1, "latents": dist.get_world_size()})
    trainer = trainer_on(mesh, folder)
    if dist.get_rank() == 1 and how in callbacks:
        trainer.callbacks = (callbacks[how],)
    if dist.get_rank() == 1 and how == "write":
        dcp.FileSystemWriter.write_data = dying_writer(folder)
    with one_clear_message(lambda line: print(f"SAID {line}", flush=True), resume="Resume it."):
        if has_checkpoint(Path(folder)):
            trainer.resume(folder)
        trainer.fit(batches())
    dist.destroy_process_group()


def failed_at(folder: str | Path) -> Path:
    """A file that a rank touches right before it fails."""
    return Path(f"{folder}.failed")


class Failing(EndAt):
    """Raises on its rank alone."""

    def __init__(self, folder: str) -> None:
        super().__init__(ENDS)
        self.folder = folder

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        """Fail where it is time."""
        if report.step == self.step:
            failed_at(self.folder).touch()
            self.fail()

    def fail(self) -> None:
        """Raise."""
        raise ValueError("the disk of this machine is gone")


class Dying(Failing):
    """Dies without a word on its rank alone."""

    def fail(self) -> None:
        """Die."""
        os.kill(os.getpid(), signal.SIGKILL)


def dying_writer(folder: str) -> Any:
    """Writes one checkpoint, and dies once its files of the second lie there, before it is published."""
    write_data = dcp.FileSystemWriter.write_data
    numbers = itertools.count(1)

    def write(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = write_data(self, *args, **kwargs)
        if next(numbers) == 2:
            failed_at(folder).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return write


def copy_of(folder: Path, *, to: Path) -> str:
    """A copy of a folder of checkpoints, for a run of its own."""
    return str(shutil.copytree(folder, to))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], how=sys.argv[2])
