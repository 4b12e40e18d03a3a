"""How long a run takes, estimated from counted work and a device's published speed.

The work (floating-point operations and bytes) is counted from the configs. How fast a device does it is
taken as a fixed share of its data sheet, or from rates that were measured. Nothing here was calibrated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crosscoders._typing import typed
from crosscoders.models.model_config import cut_at
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.planning.devices import is_overlapped
from crosscoders.pipeline.planning.ranks import RankLayout, rank_config
from crosscoders.pipeline.planning.speed import Speed
from crosscoders.pipeline.planning.training_bytes import most_active
from crosscoders.pipeline.sizes import shown_bytes

_FLOAT32 = 4
_ADAM_FUSED, _ADAM_FOREACH, _CLIPPING = 28, 72, 12  # bytes that one parameter moves in a step, in float32


@dataclass(frozen=True, kw_only=True)
class TimeEstimate:
    """Seconds of a run, estimated.

    Args:
        speed: The device, of which every rank has one.
        harvested_tokens: Tokens that the models read, held-out ones included.
        trained_tokens: Tokens that are trained on, over all epochs.
        harvest_operations: Floating-point operations of all models for one token; counted.
        step_operations: Of one training step on one rank; counted.
        step_traffic: Bytes of memory that it moves besides; counted.
        harvest: Seconds of harvesting.
        training: Seconds of training steps.
        is_overlapped: Whether both happen at the same time on different devices.
        assumptions: What the seconds rest on, one sentence each.
    """

    speed: Speed
    harvested_tokens: int
    trained_tokens: int
    harvest_operations: int
    step_operations: int
    step_traffic: int
    harvest: float
    training: float
    is_overlapped: bool
    assumptions: tuple[str, ...]

    @property
    def total(self) -> float:
        """Seconds of the run: the longer of both where they overlap, else their sum."""
        return max(self.harvest, self.training) if self.is_overlapped else self.harvest + self.training


@typed
def estimate_time(
    config: RunConfig,
    found: Mapping[str, Any],
    *,
    held: Mapping[str, int],
    path: str,
    speed: Speed,
    layout: RankLayout,
) -> TimeEstimate | None:
    """Estimate a run's hours.

    Args:
        config: The whole run.
        found: Each source's transformers config.
        held: Bytes of each source's parameters up to the hook.
        path: How the training step goes on a rank, see `step_path`.
        speed: Each rank's device.
        layout: Ranks.

    Returns:
        The estimate; None where `data.n_tokens` leaves the length to the text.
    """
    data = config.data
    if data.n_tokens is None:
        return None
    n_trained = data.n_tokens * data.epochs
    n_harvested = (data.n_tokens if config.system.store else n_trained) + data.held_out_tokens
    part = rank_config(config, layout)
    width = sum(_width(found[name]) for name in config.models())
    operations, traffic = step_work(part, path=path, width=width)
    step = operations / (speed.product_share * _peak(speed, part.training.precision))
    step += traffic / (speed.bandwidth_share * speed.bandwidth)
    counted = {
        name: harvest_operations(
            found[name],
            parameters=held[name] // model.torch_dtype.itemsize,
            up_to=config.hook_name,
            length=data.sequence_length,
        )
        for name, model in config.models().items()
    }
    per_token = _seconds_per_token(config, counted=counted, held=held, speed=speed)
    harvest_rate = speed.harvest_rate or layout.n_ranks / per_token
    return TimeEstimate(
        speed=speed,
        harvested_tokens=n_harvested,
        trained_tokens=n_trained,
        harvest_operations=sum(counted.values()),
        step_operations=operations,
        step_traffic=traffic,
        harvest=n_harvested / harvest_rate,
        training=n_trained / (speed.training_rate or data.batch_tokens / step),
        is_overlapped=is_overlapped(config),
        assumptions=_assumptions(config, speed, layout, width=width),
    )


@typed
def harvest_operations(model: Any, *, parameters: int, up_to: str, length: int) -> int:
    """Floating-point operations with which one model reads one token.

    Two per parameter before the hook, the embedding left out, and `4 length heads d_head` per layer for the
    scores and sums of attention, as if no key were masked.

    Args:
        model: Its transformers config.
        parameters: How many are held when it is read up to the hook, the embedding among them.
        up_to: Hook, or "half".
        length: Tokens per row.

    Raises:
        ValueError: A hook outside the residual stream.
    """
    cut = cut_at(up_to, model)
    if cut is None:
        raise ValueError(f"harvest_operations: {up_to!r} is no hook of the residual stream.")
    text = model.get_text_config(decoder=True)
    heads = int(text.num_attention_heads)
    d_head = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    products = parameters - int(text.vocab_size) * int(text.hidden_size)
    return 2 * products + cut.n_layers_held * 4 * length * heads * d_head


@typed
def step_work(config: RunConfig, *, path: str, width: int) -> tuple[int, int]:
    """Operations of one training step's dense products, and bytes that the rest of it moves.

    With batch B, F latents, all sources' columns D, and k active latents: encoding takes `2 B F D`. Where the
    latents are dense (no fixed number of them, or path "dense"), so do decoding and the three products of
    the backward pass. Where they are sparse, decoding and both weights' gradients gather `B k D` numbers
    each. Every pass over the pre-activations moves `B F`. Adam moves 28 bytes per parameter in the kernels
    and 72 in torch's default, clipping 12. Dead latents' work (AuxK) is left out.

    Args:
        config: What one rank trains.
        path: What `step_path` gave.
        width: Columns over all sources.
    """
    low = 2 if config.training.precision == "bfloat16" else _FLOAT32
    batch, n_latents, k = config.data.batch_tokens, config.n_latents, most_active(config.activation_fn)
    is_dense = k is None or path == "dense"
    product = 2 * batch * n_latents * width
    passes = 12 if k is None else 6  # k None: the latents, a penalty, and the gradients of both
    per_parameter = _ADAM_FOREACH if path == "autograd" else _ADAM_FUSED
    per_parameter += 0 if config.training.max_grad_norm is None else _CLIPPING
    traffic = passes * batch * n_latents * (_FLOAT32 if path == "autograd" else low)
    traffic += 2 * n_latents * width * per_parameter
    traffic += 0 if is_dense else 3 * batch * int(k or 0) * width * low
    return (5 if is_dense else 1) * product, traffic


@typed
def exchanged_bytes(config: RunConfig, layout: RankLayout, *, width: int) -> int:
    """Least that one rank sends in a step: ring sums of gradients, and of partial reconstructions.

    A ring sum over n ranks sends `2 (n - 1) / n` times what is summed, here in float32. The exact selection
    of the top-k families and the rows of a split harvest come on top.

    Args:
        config: The whole run.
        layout: Ranks.
        width: Columns over all sources.
    """
    part = rank_config(config, layout)
    parameters = 2 * part.n_latents * width + part.n_latents + width
    gradients = 2 * (layout.data_ranks - 1) * parameters * _FLOAT32 // layout.data_ranks
    rows = part.data.batch_tokens * width * _FLOAT32
    return gradients + 2 * (layout.latent_shards - 1) * rows // layout.latent_shards


def _seconds_per_token(
    config: RunConfig, *, counted: Mapping[str, int], held: Mapping[str, int], speed: Speed
) -> float:
    """One device's time for one token of all models, with what moving offloaded weights adds."""
    seconds, data = 0.0, config.data
    for name, model in config.models().items():
        seconds += counted[name] / (speed.harvest_share * _peak(speed, model.dtype))
        if model.offload:
            seconds += held[name] / speed.transfer / (data.sequences_per_harvest * data.sequence_length)
    return seconds


def _peak(speed: Speed, dtype: str) -> float:
    return speed.float32 if dtype == "float32" else speed.bfloat16


def _width(model: Any) -> int:
    return int(model.get_text_config(decoder=True).hidden_size)


def _assumptions(config: RunConfig, speed: Speed, layout: RankLayout, *, width: int) -> tuple[str, ...]:
    """What an estimate rests on, said beside it."""
    peak = (
        f"every device is one {speed.name}: {speed.bfloat16 / 1e12:.0f} TFLOP/s in bfloat16, "
        f"{speed.float32 / 1e12:.0f} in float32, {speed.bandwidth / 1e12:.2f} TB/s ({speed.source})"
    )
    said = [peak] if None in (speed.harvest_rate, speed.training_rate) else []
    said += _rate_lines(config, speed)
    if is_overlapped(config):
        said.append("harvest and training run at the same time, on different devices")
    elif config.system.overlap != "none":
        said.append("harvest and training share a device, so that overlap saves nothing")
    else:
        said.append("harvest and training take turns")
    if layout.n_ranks > 1:
        said.append(f"{layout.n_ranks} ranks divide the work evenly")
        moved = shown_bytes(exchanged_bytes(config, layout, width=width))
        said.append(f"what they exchange costs no time; each sends {moved} or more in a step")
    said.append("no latent is dead; AuxK's work on dead ones comes on top")
    said.append(
        "not counted: loading, tokenizing, reading and writing the store, measuring, splicing, checkpoints"
    )
    return tuple(said)


def _rate_lines(config: RunConfig, speed: Speed) -> list[str]:
    harvest, training, said = speed.harvest_rate, speed.training_rate, []
    if harvest is None:
        said.append(f"reading models reaches {speed.harvest_share:.0%} of the peak (assumed, not measured)")
        if any(model.offload for model in config.models().values()):
            said.append(f"weights move to the device at {speed.transfer / 1e9:.0f} GB/s (assumed)")
    else:
        said.append(f"the models read {harvest:,.0f} tokens per second together (given)")
    if training is None:
        said.append(
            f"products of a step in {config.training.precision} reach {speed.product_share:.0%} of the peak, "
            f"memory {speed.bandwidth_share:.0%} of its bandwidth (assumed, not measured)"
        )
    else:
        said.append(f"training takes {training:,.0f} tokens per second (given)")
    return said
