"""What a checkpoint holds of a trainer, how it is written, and how a trainer takes it back."""

import copy
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from torch import Tensor

from crosscoders.crosscoder import CrosscoderConfig
from crosscoders.training.checkpoints.files import (
    SHARDED,
    find_checkpoint,
    read_checkpoint,
    read_listing,
    write_checkpoint,
)
from crosscoders.training.update import check_same, run_identity

if TYPE_CHECKING:
    from crosscoders.training.trainer import Trainer

Key = tuple[str | int, ...]  # the way to one entry of a state: keys of dicts and indices of lists
AxisName = Literal["latents", "data"]

_PER_LATENT = ("W_enc", "b_enc", "W_dec", "selection_weight")


def trainer_state(trainer: "Trainer") -> dict[str, Any]:
    """A copy of everything that the next step depends on, except the position in the data.

    On several ranks it holds this rank's part of what is spread over them.
    """
    state = {
        "crosscoder": trainer.crosscoder.state_dict(),
        "crosscoder_config": trainer.crosscoder.config.to_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "tokens_since_fired": trainer.tokens_since_fired,
        "calibration_batches": trainer._ring.batches,
        "step": trainer.step,
        "tokens_seen": trainer.tokens_seen,
        "total_tokens": trainer.total_tokens,
        "run": run_identity(trainer.config, trainer.objective),
        "callbacks": {type(callback).__name__: callback.state_dict() for callback in trainer.callbacks},
    }
    return copy.deepcopy(state)


def load_trainer_state(trainer: "Trainer", state: dict[str, Any]) -> None:
    """Take back what `trainer_state` gave.

    Raises:
        ValueError: It belongs to a run with other settings.
    """
    check_same(
        "crosscoder config", saved=state["crosscoder_config"], here=trainer.crosscoder.config.to_dict()
    )
    check_same("run", saved=state["run"], here=run_identity(trainer.config, trainer.objective))
    state = copy.deepcopy(state)
    trainer.crosscoder.load_state_dict(state["crosscoder"], strict=True)
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer._path.forget()
    trainer.tokens_since_fired.copy_(state["tokens_since_fired"])
    device = trainer.crosscoder.W_enc.device
    trainer._ring.batches = [batch.to(device) for batch in state["calibration_batches"]]
    trainer.step, trainer.tokens_seen = state["step"], state["tokens_seen"]
    trainer.total_tokens = state["total_tokens"]
    for callback in trainer.callbacks:
        if type(callback).__name__ in state["callbacks"]:
            callback.load_state_dict(state["callbacks"][type(callback).__name__])


@final
@dataclass(frozen=True, kw_only=True)
class StateAxes:
    """Along which axis of the ranks the first dimension of each tensor of a checkpoint is spread.

    Args:
        latent_keys: Keys of the crosscoder's state dict that hold one row per latent.
        optimized: For each parameter of the optimizer, in its order, the key of the crosscoder's state dict.
        n_latents: Number of latents over all ranks.
    """

    latent_keys: frozenset[str]
    optimized: tuple[str | None, ...]
    n_latents: int

    def of(self, key: Key, shapes: Mapping[Key, torch.Size]) -> AxisName | None:
        """The axis, or None for a tensor that every rank holds whole.

        Args:
            key: Way to the tensor in what a checkpoint holds.
            shapes: Shapes of all tensors of that state: all parts of one rank, or all whole.

        Raises:
            ValueError: The optimizer keeps tensors that cannot be split with their parameter.
        """
        match key:
            case ("trainer", "tokens_since_fired"):
                return "latents"
            case ("trainer", "calibration_batches", _):
                return "data"
            case ("trainer", "crosscoder", str(name)):
                return "latents" if name in self.latent_keys else None
            case ("trainer", "optimizer", "state", int(index), *_) if shapes[key]:
                return self._of_moment(key, self.optimized[index], shapes)
        return None

    def _of_moment(self, key: Key, name: str | None, shapes: Mapping[Key, torch.Size]) -> AxisName | None:
        if name not in self.latent_keys:
            return None
        expected = shapes["trainer", "crosscoder", name]
        if shapes[key] != expected:
            raise ValueError(
                f"Trainer: the optimizer keeps {key[-1]!r} of shape {tuple(shapes[key])} for {name} of shape "
                f"{tuple(expected)}; several ranks need numbers or tensors of the parameter's shape."
            )
        return "latents"


def axes_of(trainer: "Trainer") -> StateAxes:
    """How the state of this trainer is spread over ranks, or would be."""
    names = {id(parameter): name for name, parameter in trainer.crosscoder.named_parameters()}
    groups = trainer.optimizer.param_groups
    return StateAxes(
        latent_keys=latent_keys(trainer.crosscoder.config),
        optimized=tuple(names.get(id(parameter)) for group in groups for parameter in group["params"]),
        n_latents=trainer.crosscoder.config.n_latents,
    )


def latent_keys(config: CrosscoderConfig) -> frozenset[str]:
    """Keys of a crosscoder's state dict that hold one row per latent.

    Those of the activation function are found by asking it for one latent more.

    Raises:
        ValueError: The activation function keeps its latents along another dimension than the first.
    """
    few, many = (_activation_shapes(config, n_latents=config.n_latents + extra) for extra in (0, 1))
    changed = {name for name, shape in few.items() if many.get(name) != shape}
    for name in changed:
        if many.get(name) != torch.Size((few[name][0] + 1, *few[name][1:])):
            raise ValueError(
                f"{config.activation_fn}: {name} has shape {tuple(few[name])} for {config.n_latents} latents "
                "and does not grow by one row with one latent more; expected one row per latent, or a shape "
                "that does not depend on their number."
            )
    return frozenset({*_PER_LATENT, *(f"activation.{name}" for name in changed)})


def _activation_shapes(config: CrosscoderConfig, *, n_latents: int) -> dict[str, torch.Size]:
    with torch.device("meta"):
        module = config.activation_fn.build(n_latents)
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def save_checkpoint(trainer: "Trainer", position: dict[str, Any]) -> Path:
    """Write a checkpoint of this step; on several ranks all of them call this together.

    Args:
        trainer: A trainer with a folder for checkpoints.
        position: Where the data stand.

    Returns:
        The new checkpoint's path.

    Raises:
        OSError: Writing failed; no checkpoint of this step is visible.
    """
    assert trainer.checkpoint_dir is not None
    state = {"trainer": trainer.state_dict(), "batches": position}
    kept, every = trainer.config.checkpoints_kept, trainer.config.milestone_every_steps
    folder, step = trainer.checkpoint_dir, trainer.step
    if trainer.mesh is None:
        return write_checkpoint(folder, state, step=step, kept=kept, milestone_every_steps=every)
    return _sharded_checkpoint().write_sharded(
        folder,
        state,
        step=step,
        mesh=trainer.mesh,
        axes=axes_of(trainer),
        kept=kept,
        milestone_every_steps=every,
    )


def load_checkpoint(trainer: "Trainer", path: Path) -> dict[str, Any]:
    """Take a checkpoint back, whoever wrote it; on several ranks all of them call this together.

    Args:
        trainer: A trainer of the same run, on any number of ranks.
        path: A checkpoint, or a folder of them, of which the newest is taken.

    Returns:
        Where the data stand.

    Raises:
        CheckpointError: There is none or it is damaged.
        ValueError: It belongs to a run with other settings.
    """
    if trainer.mesh is not None:
        state = _sharded_checkpoint().read_on_ranks(path, mesh=trainer.mesh, axes=axes_of(trainer))
    else:
        path = find_checkpoint(path)
        is_sharded = read_listing(path).get("layout") == SHARDED
        state = _sharded_checkpoint().read_whole(path) if is_sharded else read_checkpoint(path)
    trainer.load_state_dict(state["trainer"])
    return state["batches"]


def map_tensors(tree: Any, change: Callable[[Key, Tensor], Any], *, key: Key = ()) -> Any:
    """A copy of a tree of dicts, lists and tuples with every tensor changed.

    Args:
        tree: The tree; everything else in it stays as it is.
        change: Given the way to a tensor and the tensor; gives what takes its place.
        key: Way to the tree itself.
    """
    if isinstance(tree, Tensor):
        return change(key, tree)
    if isinstance(tree, Mapping):
        return {name: map_tensors(value, change, key=(*key, name)) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        items = [map_tensors(value, change, key=(*key, i)) for i, value in enumerate(tree)]
        return items if isinstance(tree, list) else tuple(items)
    return tree


def _sharded_checkpoint() -> ModuleType:
    """Loaded late: DTensor and Distributed Checkpoint take half a second, and most runs need neither."""
    return importlib.import_module("crosscoders.training.checkpoints.sharded")
