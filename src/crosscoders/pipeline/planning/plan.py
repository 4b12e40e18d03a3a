"""What a run will hold in memory, and which placement of its models fits, said before anything is loaded."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from crosscoders._typing import typed
from crosscoders.models.configs import find_config
from crosscoders.models.hooks import parse_residual_hook
from crosscoders.models.truncated import tensor_bytes
from crosscoders.pipeline.config import DataConfig, RunConfig
from crosscoders.pipeline.planning.data import data_bytes
from crosscoders.pipeline.planning.devices import device_name
from crosscoders.pipeline.planning.placements import placements
from crosscoders.pipeline.planning.ranks import RankLayout, rank_config
from crosscoders.pipeline.planning.result import ModelBytes, Plan
from crosscoders.pipeline.planning.speed import Speed
from crosscoders.pipeline.planning.time import estimate_time
from crosscoders.pipeline.planning.training_bytes import training_bytes
from crosscoders.pipeline.planning.workspace import (
    Workspace,
    measuring_bytes,
    reading_bytes,
    splicing_bytes,
    step_bytes,
    tokens_per_harvest,
)


@typed
def plan(
    config: RunConfig,
    *,
    vram_bytes: int,
    model_configs: Mapping[str, Any] | None = None,
    dead_fraction: float = 1.0,
    reserve_bytes: int = 2_000_000_000,
    ranks: RankLayout | None = None,
    n_devices: int = 1,
    speed: Speed | None = None,
) -> Plan:
    """Add up what a run holds, on the meta device: nothing is loaded, downloaded or allocated but configs.

    Parameter, optimizer, buffer and disk bytes are exact; the workspace is an estimate, and so are hours.
    Three placements are judged: both models whole (what splicing reconstructions needs), both read only up
    to the hook, and both truncated with their weights in CPU memory, moved to the device one after the other.
    With more devices also truncated models on devices of their own, so that harvest and training overlap.

    Args:
        config: The run. Its `splice_tokens` only matter to the first placement.
        vram_bytes: Memory of each device, bytes.
        model_configs: For each source name a transformers config, in place of the one that its path names.
        dead_fraction: Share of the latents that are dead at the worst moment; AuxK works on their rows. 1 is
            the bound.
        reserve_bytes: What stays free on each device but the CPU, for what is not counted: the CUDA context,
            memory that kernels use inside, fragmentation.
        ranks: How `torchrun` splits the run; None for one process. Each rank then holds models and buffer of
            its own, and its part of the crosscoder.
        n_devices: CUDA devices that one process may use.
        speed: Makes the plan estimate hours; each device is taken to be one of these.

    Returns:
        The plan.

    Raises:
        ValueError: A number out of range, a hook that a model lacks or that is none of the residual stream
            (how wide it is only the loaded model says), or a buffer that cannot hold one batch.
        OSError: A path names no config.
    """
    layout = ranks or RankLayout()
    _check_numbers(vram_bytes=vram_bytes, dead_fraction=dead_fraction, layout=layout, n_devices=n_devices)
    _check_hook(config.hook_name)
    found = _model_configs(config, model_configs or {})
    models = {name: _model_bytes(config, name, found[name]) for name in config.models()}
    widths = [model.d_model for model in models.values()]
    part = rank_config(config, layout)
    whole, training = training_bytes(config, widths=widths), training_bytes(part, widths=widths)
    workspace = _workspace(config, found, part=part, path=training.path, dead_fraction=dead_fraction)
    if layout.n_ranks > 1:  # measuring takes the whole crosscoder, brought together beside the rank's part
        workspace = dataclasses.replace(workspace, measuring=workspace.measuring + whole.parameters)
    itemsize = config.system.torch_dtype.itemsize
    shown = Plan(
        vram_bytes=vram_bytes,
        reserve_bytes=reserve_bytes,
        device=device_name(config.device),
        n_latents=config.n_latents,
        models=models,
        training=training,
        buffer_bytes=buffer_bytes(config.data, width=sum(widths), itemsize=itemsize),
        workspace=workspace,
        placements=(),
        data=data_bytes(
            config,
            width=sum(widths),
            training=whole,
            window_batches=_window_batches(config.data, width=sum(widths), itemsize=itemsize),
        ),
        ranks=layout,
        time=None,
    )
    if speed is not None:
        held = {name: model.truncated for name, model in models.items()}
        hours = estimate_time(config, found, held=held, path=training.path, speed=speed, layout=layout)
        shown = dataclasses.replace(shown, time=hours)
    judged = placements(shown, overlap=config.system.overlap, n_devices=n_devices)
    return dataclasses.replace(shown, placements=judged)


@typed
def buffer_bytes(data: DataConfig, *, width: int, itemsize: int = 2) -> int:
    """Most that the activation buffer holds: its window and permutation, and the rows carried over.

    The window is a whole number of batches within `data.buffer_bytes`, and no
    larger than `data.n_tokens` ask for.

    Args:
        data: Limits.
        width: Columns over all sources.
        itemsize: Bytes of one number; rows are kept in bfloat16 unless `system.rows_dtype` says otherwise.

    Raises:
        ValueError: The limit does not hold one batch.
    """
    carried = data.sequences_per_harvest * data.sequence_length * width * itemsize
    n_batches = _window_batches(data, width=width, itemsize=itemsize)
    return carried + n_batches * data.batch_tokens * (width * itemsize + 8)


def _window_batches(data: DataConfig, *, width: int, itemsize: int) -> int:
    row = width * itemsize
    carried = data.sequences_per_harvest * data.sequence_length * row
    per_batch = data.batch_tokens * (row + 8)
    n_batches = (data.buffer_bytes - carried) // per_batch
    if n_batches < 1:
        raise ValueError(
            f"plan: data.buffer_bytes={data.buffer_bytes} is too small; one batch and the rows carried over "
            f"from one harvest need {carried + per_batch} bytes. Raise it, or lower sequences_per_harvest."
        )
    if data.n_tokens is None:
        return n_batches
    return min(n_batches, max(1, -(-data.n_tokens // data.batch_tokens)))


def _check_numbers(*, vram_bytes: int, dead_fraction: float, layout: RankLayout, n_devices: int) -> None:
    if vram_bytes < 1 or not 0 <= dead_fraction <= 1:
        raise ValueError(
            "plan: vram_bytes must be positive and dead_fraction in [0, 1], "
            f"got {vram_bytes} and {dead_fraction}."
        )
    if n_devices < 1 or (n_devices > 1 and layout.n_ranks > 1):
        raise ValueError(
            "plan: n_devices must be at least 1, and 1 with several ranks, of which each has one device; "
            f"got {n_devices} devices and {layout.n_ranks} ranks."
        )


def _model_configs(config: RunConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """The transformers config of each model: the one given, or the one that its path names."""
    wanted = config.models()
    missing = {name: model for name, model in wanted.items() if name not in given}
    return {**given, **{n: find_config(m.path, revision=m.revision) for n, m in missing.items()}}


def _check_hook(hook_name: str) -> None:
    if hook_name != "half" and parse_residual_hook(hook_name) is None:
        raise ValueError(
            f"plan: hook_name {hook_name!r} is none of the residual stream, and how wide other hooks are is "
            "not known before loading; use 'half' or a hook such as 'blocks.3.hook_resid_pre'."
        )


def _model_bytes(config: RunConfig, name: str, found: Any) -> ModelBytes:
    model = config.models()[name]
    text = found.get_text_config(decoder=True)
    return ModelBytes(
        path=model.path,
        dtype=model.dtype,
        device=device_name(model.device or config.device),
        d_model=int(text.hidden_size),
        n_layers=int(text.num_hidden_layers),
        whole=tensor_bytes(found, up_to=None, dtype=model.torch_dtype),
        truncated=tensor_bytes(found, up_to=config.hook_name, dtype=model.torch_dtype),
        is_offloaded=model.offload,
    )


def _workspace(
    config: RunConfig, found: Mapping[str, Any], *, part: RunConfig, path: str, dead_fraction: float
) -> Workspace:
    n_tokens = tokens_per_harvest(config)
    sizes = {name: model.torch_dtype.itemsize for name, model in config.models().items()}
    widths = {name: int(found[name].get_text_config(decoder=True).hidden_size) for name in sizes}
    width = sum(widths.values())
    captured = sum(n_tokens * widths[name] * sizes[name] for name in sizes)
    reading, before = {}, 0
    for name, itemsize in sizes.items():
        reading[name] = before + reading_bytes(found[name], n_tokens=n_tokens, itemsize=itemsize)
        before += n_tokens * widths[name] * itemsize
    spliced = list(sizes) if config.data.splice_tokens > 0 else []
    return Workspace(
        reading=reading,
        # The rows of all sources in float32 beside what was captured, then beside the rows that are kept.
        assembling=n_tokens * width * 4 + max(captured, n_tokens * width * 4),
        training=step_bytes(part, path=path, width=width, dead_fraction=dead_fraction),
        measuring=measuring_bytes(config, width=width),
        splicing={name: splicing_bytes(config, found[name]) for name in spliced},
    )
