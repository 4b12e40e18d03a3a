"""`Plan`: what a run will hold in memory, as numbers and as text."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from crosscoders.pipeline.planning.data import DataBytes
from crosscoders.pipeline.planning.ranks import RankLayout
from crosscoders.pipeline.planning.text import data_lines, rank_lines, time_lines
from crosscoders.pipeline.planning.time import TimeEstimate
from crosscoders.pipeline.planning.training_bytes import TrainingBytes
from crosscoders.pipeline.planning.workspace import Workspace
from crosscoders.pipeline.sizes import shown_bytes
from crosscoders.report.tables import aligned

HOST = "cpu"
_HINTS = {  # how a configuration asks for a placement
    "both whole, spliced": "",
    "both truncated": " (data.splice_tokens = 0)",
    "models on a second device": (
        ' (data.splice_tokens = 0, device = "cuda:1" for both models, and system.overlap = "process")'
    ),
    "a device for each model": (
        ' (data.splice_tokens = 0, device = "cuda:1" and "cuda:2" for the models, and '
        'system.overlap = "process")'
    ),
    "one after the other": " (data.splice_tokens = 0, and offload = true for both models)",
    "both whole": "",
}


@dataclass(frozen=True, kw_only=True)
class ModelBytes:
    """Parameters of one model, exact.

    Args:
        path: Folder, Hub id or config file.
        dtype: Dtype of the weights.
        device: Where it reads.
        d_model: Width of the residual stream.
        n_layers: Layers of the whole model.
        whole: Bytes of all parameters.
        truncated: Bytes of those that are read up to the hook.
        is_offloaded: Whether the configuration asks for its weights to live in CPU memory.
    """

    path: str
    dtype: str
    device: str
    d_model: int
    n_layers: int
    whole: int
    truncated: int
    is_offloaded: bool = False


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One way to place the models.

    Args:
        name: "both whole", "both truncated", "one after the other"; where there are more devices also "models
            on a second device" and "a device for each model".
        needs: Peak bytes by device, the workspace estimated; "cpu" is the machine's own memory.
        fits: Whether no device needs more than it has.
        headroom: Bytes left on the fullest device, less what is kept free; negative where they are missing.
    """

    name: str
    needs: dict[str, int]
    fits: bool
    headroom: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `plan` found. Everything but `workspace`, what contains it, and `time` is exact.

    With several ranks `training`, `workspace` and `placements` are those of one rank, the fullest.

    Args:
        vram_bytes: What each device has.
        reserve_bytes: What of it stays free, except on the CPU.
        device: The crosscoder's device.
        n_latents: Dictionary size.
        models: Each source's model.
        training: The crosscoder with its optimizer.
        buffer_bytes: The activation buffer, in CPU memory: window, permutation and carried rows at most.
        workspace: Estimates of what is needed for a moment.
        placements: The ways to place the models, the one that serves the run best first.
        data: Disk, and CPU memory beside the buffer.
        ranks: How the run is split over processes.
        time: Hours, estimated; None without a device's speed, or where the text says how long the run is.
    """

    vram_bytes: int
    reserve_bytes: int
    device: str
    n_latents: int
    models: dict[str, ModelBytes]
    training: TrainingBytes
    buffer_bytes: int
    workspace: Workspace
    placements: tuple[Placement, ...]
    data: DataBytes
    ranks: RankLayout
    time: TimeEstimate | None = None

    @property
    def best(self) -> Placement | None:
        """The first placement that fits, or None."""
        return next((placement for placement in self.placements if placement.fits), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain form of the plan."""
        return dataclasses.asdict(self)

    def summary(self) -> str:
        """The plan as text: ranks, models, crosscoder, disk, workspace, hours, and what fits."""
        parts = [
            rank_lines(self.ranks),
            _model_lines(self),
            _training_lines(self),
            data_lines(self.data),
            _workspace_lines(self),
            [] if self.time is None else time_lines(self.time, row=self.data.row),
            _verdict(self),
        ]
        return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _model_lines(found: Plan) -> list[str]:
    rows = [["Models (exact)", "dtype", "device", "layers", "width", "whole", "up to the hook", "share"]]
    for name, model in found.models.items():
        rows.append(
            [
                f"{name}: {model.path}",
                model.dtype,
                model.device,
                str(model.n_layers),
                str(model.d_model),
                shown_bytes(model.whole),
                shown_bytes(model.truncated),
                f"{model.truncated / model.whole:.1%}",
            ]
        )
    return aligned(rows)


def _training_lines(found: Plan) -> list[str]:
    training = found.training
    parts = {
        "parameters": training.parameters,
        "gradients": training.gradients,
        "Adam's moments": training.optimizer,
        "norms and copies of the kernels": training.step_state,
        "calibration batches": training.calibration_batches,
        "buffers and counters": training.buffers,
        "together": training.total,
    }
    title = f"Crosscoder of {found.n_latents} latents on {found.device}, step by {training.path} (exact)"
    rows = [[title, ""], *([f"  {name}", shown_bytes(size)] for name, size in parts.items())]
    return [*aligned(rows), f"Activation buffer in CPU memory (exact): {shown_bytes(found.buffer_bytes)}"]


def _workspace_lines(found: Plan) -> list[str]:
    workspace = found.workspace
    parts = {f"{name} reads": size for name, size in workspace.reading.items()}
    parts |= {
        "activations brought together": workspace.assembling,
        "training step": workspace.training,
        "measuring": workspace.measuring,
    }
    parts |= {f"splicing into {name}": size for name, size in workspace.splicing.items()}
    rows = [["Workspace, one at a time (estimate)", ""]]
    return aligned([*rows, *([f"  {name}", shown_bytes(size)] for name, size in parts.items())])


def _verdict(found: Plan) -> list[str]:
    has = shown_bytes(found.vram_bytes)
    devices = sorted(
        {at for placement in found.placements for at in placement.needs}, key=lambda at: at == HOST
    )
    rows = [["Placement", *(f"needs on {at}" for at in devices), f"of {has}", "headroom"]]
    for placement in found.placements:
        needs = [shown_bytes(placement.needs.get(at, 0)) for at in devices]
        fits = "fits" if placement.fits else "does not fit"
        rows.append([placement.name, *needs, fits, shown_bytes(placement.headroom)])
    if set(devices) != {HOST}:
        rows[0][-2] += f" less {shown_bytes(found.reserve_bytes)}"
    best = found.best
    said = "Nothing fits." if best is None else f"Take: {best.name}{_HINTS[best.name]}."
    return [*aligned(rows), said]
