"""Checkpoints that several ranks write together, through Distributed Checkpoint of PyTorch.

What is spread over the ranks goes into its files as DTensors: the rows of the latents over the axis
"latents", the rows of the calibration batches over "data". Everything else is rank 0's and goes into one more
file, read without pickle. A manifest covers every byte. Any number of ranks reads it, one process too.
"""

import contextlib
import functools
import io
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from crosscoders._io import atomic_directory, file_entry, write_manifest
from crosscoders._typing import typed
from crosscoders.errors import CheckpointError
from crosscoders.parallel import ranks_of
from crosscoders.training.checkpoints.files import (
    MANIFEST,
    SHARDED,
    check_files,
    checkpoint_path,
    find_checkpoint,
    load_state,
    read_listing,
    remove_stale,
)
from crosscoders.training.checkpoints.safe_reader import METADATA, SafeReader
from crosscoders.training.checkpoints.state import AxisName, Key, StateAxes, map_tensors
from crosscoders.training.on_ranks.together import on_every_rank, on_main

_REST = "rest.pt"
_SPREAD = ("crosscoder", "optimizer", "tokens_since_fired", "calibration_batches")


@typed
def write_sharded(
    folder: Path,
    state: Mapping[str, Any],
    *,
    step: int,
    mesh: DeviceMesh,
    axes: StateAxes,
    kept: int,
    milestone_every_steps: int,
) -> Path:
    """Write `folder/step-000000123` from all ranks, which call this together, and remove stale ones.

    Every rank writes its files into a folder with a temporary name, which rank 0 publishes once all are
    done: a rank that fails or is killed before that leaves the older checkpoints as they were.

    Args:
        folder: Folder of the run's checkpoints, the same for all ranks.
        state: This rank's state: tensors, numbers, strings, and lists and dicts of them.
        step: Steps done.
        mesh: The mesh of the run, over all processes.
        axes: How the state is spread over it.
        kept: Newest checkpoints to keep.
        milestone_every_steps: Checkpoints at multiples of this many steps stay; 0 for none.

    Returns:
        The new checkpoint's path.

    Raises:
        OSError: Writing failed on a rank; no checkpoint of this step is visible.
        ValueError: A tensor that no rule spreads over the ranks is not the same on all of them.
    """
    path = checkpoint_path(folder, step=step)
    spread, rest = _divided(state)
    tensors = _as_dtensors(spread, mesh=mesh, axes=axes)
    _check_same_everywhere(rest["trainer"])
    with contextlib.ExitStack() as stack:
        opened = functools.partial(stack.enter_context, atomic_directory(path, marker=MANIFEST))
        temporary = on_main(opened)
        _save(tensors, temporary)
        own = f"__{dist.get_rank()}_*"
        entries = on_every_rank(lambda: {file.name: file_entry(file) for file in temporary.glob(own)})
        files = {name: entry for part in entries for name, entry in part.items()}
        keys = {_name(key): list(key) for key in spread}
        on_main(lambda: _complete(temporary, {"state": rest, "tensors": keys}, files=files, step=step))
        on_main(stack.close)
    on_main(lambda: remove_stale(path, kept=kept, milestone_every_steps=milestone_every_steps))
    return path


@typed
def read_on_ranks(path: Path, *, mesh: DeviceMesh, axes: StateAxes) -> dict[str, Any]:
    """Read this rank's part of a checkpoint, whoever wrote it; all ranks call this together.

    Args:
        path: A checkpoint, or the folder of a run's checkpoints, of which the newest is taken.
        mesh: The mesh of the run, over all processes.
        axes: How its state is spread over the mesh.

    Returns:
        The state, with this rank's part of what is spread.

    Raises:
        CheckpointError: There is no checkpoint, or any of its files is damaged.
    """
    path = on_main(lambda: find_checkpoint(path))
    listing = on_main(lambda: read_listing(path))
    on_every_rank(lambda: check_files(path, _own_share(listing["files"])))
    if listing.get("layout") == SHARDED:
        return _read(path, mesh=mesh, axes=axes)
    state = load_state(path, listing, is_mapped=True)
    shapes: dict[Key, torch.Size] = {}
    map_tensors(state, lambda key, tensor: shapes.update({key: tensor.shape}))
    ranks = ranks_of(mesh)

    def part(key: Key, tensor: Tensor) -> Tensor:
        axis = axes.of(key, shapes)
        return tensor if axis is None else tensor[getattr(ranks, axis).part(len(tensor))].clone()

    return map_tensors(state, part)


@typed
def read_whole(path: Path) -> dict[str, Any]:
    """Read a whole checkpoint of several ranks in one process, which need not know `torch.distributed`.

    Args:
        path: The checkpoint.

    Returns:
        The state as one process would have written it.

    Raises:
        CheckpointError: Any of its files is damaged.
    """
    check_files(path, read_listing(path)["files"])
    return _read(path, mesh=None, axes=None)


def _divided(state: Mapping[str, Any]) -> tuple[dict[Key, Tensor], dict[str, Any]]:
    """The tensors of which ranks may hold parts, by their key, and the state without them."""
    spread: dict[Key, Tensor] = {}

    def take(key: Key, tensor: Tensor) -> Tensor | None:
        if key[0] != "trainer" or key[1] not in _SPREAD:
            return tensor.cpu()
        spread[key] = tensor
        return None

    return spread, map_tensors(state, take)


def _as_dtensors(
    tensors: Mapping[Key, Tensor], *, mesh: DeviceMesh, axes: StateAxes
) -> dict[str, Tensor | DTensor]:
    """The same tensors as parts of what all ranks hold together, by their name in the files."""
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    by_axis: dict[Key, AxisName | None] = {key: axes.of(key, shapes) for key in tensors}
    totals = _total_rows({key: shapes[key][0] for key, axis in by_axis.items() if axis == "data"}, mesh=mesh)
    named: dict[str, Tensor | DTensor] = {}
    for key, tensor in tensors.items():
        axis = by_axis[key]
        n_rows = totals[key] if axis == "data" else axes.n_latents
        whole = tensor.shape if axis is None else torch.Size((n_rows, *tensor.shape[1:]))
        named[_name(key)] = _dtensor(tensor, whole, mesh=mesh, axis=axis)
    assert len(named) == len(tensors), "two keys have one name"
    return named


def _dtensor(part: Tensor, whole: torch.Size, *, mesh: DeviceMesh, axis: AxisName | None) -> Tensor | DTensor:
    names = mesh.mesh_dim_names or ()
    if axis not in names:
        return part
    placements = [Shard(0) if name == axis else Replicate() for name in names]
    stride = tuple(math.prod(whole[i + 1 :]) for i in range(len(whole)))
    return DTensor.from_local(
        part.contiguous(), mesh, placements, run_check=False, shape=whole, stride=stride
    )


def _total_rows(rows: Mapping[Key, int], *, mesh: DeviceMesh) -> dict[Key, int]:
    """Rows of each batch over all ranks of the data axis."""
    data = ranks_of(mesh).data
    counts = torch.tensor(list(rows.values()), dtype=torch.int64, device=mesh.device_type)
    totals = [int(total) for total in data.sum(counts)] if rows else []
    for total, own in zip(totals, rows.values()):
        assert len(range(total)[data.part(total)]) == own, "a rank holds other rows than its part"
    return dict(zip(rows, totals))


def _check_same_everywhere(state: Mapping[str, Any]) -> None:
    """Refuse a trainer's own tensors that differ between ranks: only rank 0's would be kept."""
    own = {key: value for key, value in state.items() if key not in ("callbacks", *_SPREAD)}
    stored: dict[str, bytes] = {}
    map_tensors(own, lambda key, tensor: stored.update({_name(key): _bytes(tensor)}))
    for rank, other in enumerate(on_every_rank(lambda: stored)):
        different = sorted(key for key in stored.keys() | other.keys() if stored.get(key) != other.get(key))
        if different:
            raise ValueError(
                f"Trainer.state_dict: {different} differ between ranks {dist.get_rank()} and {rank}; what a "
                "trainer adds to the state must be the same on every rank."
            )


def _bytes(tensor: Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    return buffer.getvalue()


def _save(tensors: Mapping[str, Tensor | DTensor], folder: Path) -> None:
    """Write the tensors from all ranks; a failure of one is raised on all."""
    writer = FileSystemWriter(folder, sync_files=True, thread_count=1)
    try:
        save(dict(tensors), storage_writer=writer)
    except CheckpointException as err:
        rank, (cause, _) = min(err.failures.items())
        if isinstance(cause, OSError):
            raise cause from err
        raise OSError(f"{folder}: rank {rank} could not write its part of the checkpoint: {cause}") from err


def _complete(folder: Path, rest: dict[str, Any], *, files: dict[str, Any], step: int) -> None:
    """Add what only rank 0 writes, and the manifest over everything."""
    for name, entry in files.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != entry["bytes"]:
            raise OSError(
                f"{folder / name}: another rank wrote it, but it is not here; give checkpoint_dir a folder "
                "that all machines of the run share."
            )
    torch.save(rest, folder / _REST)
    own = {name: file_entry(folder / name) for name in (METADATA, _REST)}
    write_manifest(folder / MANIFEST, {"step": step, "layout": SHARDED, "files": {**files, **own}})


def _read(path: Path, *, mesh: DeviceMesh | None, axes: StateAxes | None) -> dict[str, Any]:
    """Read a checkpoint whose files were checked."""
    rest = torch.load(path / _REST, map_location="cpu", weights_only=True)
    keys = {name: tuple(key) for name, key in rest["tensors"].items()}
    reader = SafeReader(path)
    described = reader.read_metadata().state_dict_metadata
    stored = {name: about for name, about in described.items() if isinstance(about, TensorStorageMetadata)}
    if stored.keys() != keys.keys():
        raise CheckpointError(f"{path}: {_REST} and {METADATA} list other tensors; it was put together.")
    shapes = {key: stored[name].size for name, key in keys.items()}
    targets: dict[str, Tensor | DTensor] = {}
    for name, key in keys.items():
        axis = None if axes is None else axes.of(key, shapes)
        targets[name] = _empty(stored[name], mesh=mesh, axis=axis)
    _load(targets, reader, on_ranks=mesh is not None)
    tensors = {keys[name]: _local(target) for name, target in targets.items()}
    return _with_tensors(rest["state"], tensors)


def _empty(stored: TensorStorageMetadata, *, mesh: DeviceMesh | None, axis: AxisName | None) -> Any:
    """Room for this rank's part of a tensor."""
    shape, dtype = stored.size, stored.properties.dtype
    if mesh is None or axis is None:
        return torch.empty(shape, dtype=dtype)
    rows = range(shape[0])[getattr(ranks_of(mesh), axis).part(shape[0])]
    part = torch.empty((len(rows), *shape[1:]), dtype=dtype, device=mesh.device_type)
    return _dtensor(part, shape, mesh=mesh, axis=axis)


def _load(targets: dict[str, Any], reader: SafeReader, *, on_ranks: bool) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is")  # one process is what we mean
        try:
            load(targets, storage_reader=reader, no_dist=not on_ranks)
        except CheckpointException as err:
            cause = min(err.failures.items())[1][0]
            raise CheckpointError(f"{reader.path}: not readable as a checkpoint ({cause}).") from err


def _local(tensor: Tensor | DTensor) -> Tensor:
    return tensor.to_local().cpu() if isinstance(tensor, DTensor) else tensor


def _with_tensors(tree: Any, tensors: Mapping[Key, Tensor], key: Key = ()) -> Any:
    """The state that `_divided` took apart."""
    if key in tensors:
        return tensors[key]
    if isinstance(tree, dict):
        return {name: _with_tensors(value, tensors, (*key, name)) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        items = [_with_tensors(value, tensors, (*key, i)) for i, value in enumerate(tree)]
        return items if isinstance(tree, list) else tuple(items)
    return tree


def _own_share(files: Mapping[str, Any]) -> dict[str, Any]:
    """The files that this rank checks, so that each is read once."""
    return {name: files[name] for name in sorted(files)[dist.get_rank() :: dist.get_world_size()]}


def _name(key: Key) -> str:
    return "/".join(map(str, key))
