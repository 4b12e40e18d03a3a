"""What a run will hold in memory, and which placement of its models fits, said before anything is loaded."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from crosscoders._typing import typed
from crosscoders.models.configs import find_config
from crosscoders.models.hooks import parse_residual_hook
from crosscoders.models.truncated import tensor_bytes
from crosscoders.pipeline.config import DataConfig, RunConfig
from crosscoders.pipeline.model_config import check_device_name
from crosscoders.pipeline.plan_result import HOST, ModelBytes, Placement, Plan
from crosscoders.pipeline.training_bytes import training_bytes
from crosscoders.pipeline.workspace import (
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
) -> Plan:
    """Add up what a run holds, on the meta device: nothing is loaded, downloaded or allocated but configs.

    Parameter, optimizer and buffer bytes are exact; the workspace is an estimate. Three placements are
    judged: both models whole (what splicing reconstructions needs), both read only up to the hook, and both
    truncated with their weights in CPU memory, moved to the device one after the other.

    Args:
        config: The run. Its `splice_tokens` only matter to the first placement.
        vram_bytes: Memory of each device, bytes.
        model_configs: For each source name a transformers config, in place of the one that its path names.
        dead_fraction: Share of the latents that are dead at the worst moment; AuxK works on their rows. 1 is
            the bound.
        reserve_bytes: What stays free on each device but the CPU, for what is not counted: the CUDA context,
            memory that kernels use inside, fragmentation.

    Returns:
        The plan.

    Raises:
        ValueError: A number out of range, a hook that a model lacks or that is none of the residual stream
            (how wide it is only the loaded model says), or a buffer that cannot hold one batch.
        OSError: A path names no config.
    """
    if vram_bytes < 1 or not 0 <= dead_fraction <= 1:
        raise ValueError(
            "plan: vram_bytes must be positive and dead_fraction in [0, 1], "
            f"got {vram_bytes} and {dead_fraction}."
        )
    _check_hook(config.hook_name)
    wanted = config.models()
    found = dict(model_configs or {})
    for name, model in wanted.items():
        if name not in found:
            found[name] = find_config(model.path, revision=model.revision)
    models = {name: _model_bytes(config, name, found[name]) for name in wanted}
    widths = [model.d_model for model in models.values()]
    training = training_bytes(config, widths=widths)
    workspace = _workspace(config, found, path=training.path, dead_fraction=dead_fraction)
    shown = Plan(
        vram_bytes=vram_bytes,
        reserve_bytes=reserve_bytes,
        device=_device_name(config.device),
        n_latents=config.n_latents,
        models=models,
        training=training,
        buffer_bytes=buffer_bytes(config.data, width=sum(widths)),
        workspace=workspace,
        placements=(),
    )
    return dataclasses.replace(shown, placements=_placements(shown))


@typed
def buffer_bytes(data: DataConfig, *, width: int) -> int:
    """Most that the activation buffer holds: its window and permutation, and the rows carried over.

    Rows are kept in bfloat16. The window is a whole number of batches within `data.buffer_bytes`, and no
    larger than `data.n_tokens` ask for.

    Args:
        data: Limits.
        width: Columns over all sources.

    Raises:
        ValueError: The limit does not hold one batch.
    """
    row = width * 2
    carried = data.sequences_per_harvest * data.sequence_length * row
    per_batch = data.batch_tokens * (row + 8)
    n_batches = (data.buffer_bytes - carried) // per_batch
    if n_batches < 1:
        raise ValueError(
            f"plan: data.buffer_bytes={data.buffer_bytes} is too small; one batch and the rows carried over "
            f"from one harvest need {carried + per_batch} bytes. Raise it, or lower sequences_per_harvest."
        )
    if data.n_tokens is not None:
        n_batches = min(n_batches, max(1, -(-data.n_tokens // data.batch_tokens)))
    return carried + n_batches * per_batch


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
        device=_device_name(model.device or config.device),
        d_model=int(text.hidden_size),
        n_layers=int(text.num_hidden_layers),
        whole=tensor_bytes(found, up_to=None, dtype=model.torch_dtype),
        truncated=tensor_bytes(found, up_to=config.hook_name, dtype=model.torch_dtype),
        is_offloaded=model.offload,
    )


def _device_name(device: str) -> str:
    """One name for one device: "cuda" is "cuda:0"."""
    named = check_device_name(device, where="plan")
    return "cuda:0" if str(named) == "cuda" else str(named)


def _workspace(config: RunConfig, found: Mapping[str, Any], *, path: str, dead_fraction: float) -> Workspace:
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
        training=step_bytes(config, path=path, width=width, dead_fraction=dead_fraction),
        measuring=measuring_bytes(config, width=width),
        splicing={name: splicing_bytes(config, found[name]) for name in spliced},
    )


def _placements(found: Plan) -> tuple[Placement, ...]:
    truncated = [
        _placement(found, "both truncated", size="truncated", is_offloaded=False),
        _placement(found, "one after the other", size="truncated", is_offloaded=True),
    ]
    if found.workspace.splicing:
        return (_placement(found, "both whole, spliced", size="whole", is_offloaded=False), *truncated)
    # Nothing asks for whole models then: a run reads them truncated.
    return (*truncated, _placement(found, "both whole", size="whole", is_offloaded=False))


def _placement(found: Plan, name: str, *, size: str, is_offloaded: bool) -> Placement:
    workspace = found.workspace
    stays: dict[str, int] = {HOST: found.buffer_bytes}
    stays[found.device] = stays.get(found.device, 0) + found.training.total
    moments = {found.device: max(workspace.assembling, workspace.training, workspace.measuring)}
    for source, model in found.models.items():
        weights = getattr(model, size)
        is_moved = is_offloaded or model.is_offloaded
        home = HOST if is_moved else model.device
        stays[home] = stays.get(home, 0) + weights
        moment = max(workspace.reading[source], workspace.splicing.get(source, 0) if size == "whole" else 0)
        moment += weights if is_moved and model.device != HOST else 0
        moments[model.device] = max(moments.get(model.device, 0), moment)
    needs = {at: stays.get(at, 0) + moments.get(at, 0) for at in sorted(stays.keys() | moments.keys())}
    judged = [at for at in needs if at != HOST] or [HOST]
    kept_free = 0 if judged == [HOST] else found.reserve_bytes
    headroom = min(found.vram_bytes - kept_free - needs[at] for at in judged)
    return Placement(name=name, needs=needs, fits=headroom >= 0, headroom=headroom)
