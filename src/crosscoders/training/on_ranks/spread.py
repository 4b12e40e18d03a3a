"""A run on several ranks: what of the crosscoder is here, and how the ranks make one update together."""

import copy
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.losses import LossBreakdown, WeightedTerm
from crosscoders.parallel import ALONE, Axis, Ranks, ranks_of
from crosscoders.training.checkpoints.state import latent_keys
from crosscoders.training.observation import read_only
from crosscoders.training.preemption import Preempted, interruptible, is_preempted

if TYPE_CHECKING:
    from crosscoders.training.trainer import Trainer

_PER_BATCH = ("training_step", "compute_losses", "after_optimizer_step")
_SENT_TOGETHER = 1 << 16  # entries up to which a gradient travels with the others, in a copy


def spread(crosscoder: Crosscoder, mesh: DeviceMesh | None) -> Crosscoder:
    """What this rank trains: the crosscoder itself, or a copy of its part of the latents.

    Args:
        crosscoder: The whole crosscoder, the same on every rank.
        mesh: The mesh of the run; None leaves the crosscoder as it is.

    Raises:
        ValueError: The mesh has other names, there is no latent for some rank, or the crosscoder is on
            another kind of device than the mesh or not the same on every rank.
    """
    if mesh is None:
        return crosscoder
    ranks, n_latents = ranks_of(mesh), crosscoder.n_latents
    device = crosscoder.W_enc.device
    if device.type != mesh.device_type:
        raise ValueError(
            f"Trainer: the crosscoder is on {device}, but the mesh is made of {mesh.device_type!r} devices; "
            "move the one or make the other anew."
        )
    if n_latents <= (ranks.latents.size - 1) * -(-n_latents // ranks.latents.size):
        raise ValueError(
            f"Trainer: {n_latents} latents leave some of {ranks.latents.size} ranks without any; use fewer "
            "latent shards."
        )
    _check_same("the crosscoder", [*crosscoder.parameters(), *crosscoder.buffers()], ranks=ranks)
    if ranks.latents.size > 1:
        crosscoder = _part_of(crosscoder, rows=ranks.latents.part(n_latents))
    crosscoder.ranks = crosscoder.activation.ranks = ranks
    return crosscoder


def check_can_spread(trainer: "Trainer", ranks: Ranks) -> None:
    """Raise ValueError, by name, for what does not know how to work on these ranks."""
    config, cls = trainer.crosscoder.config, type(trainer)
    activation, kind = trainer.crosscoder.activation, type(config.activation_fn).__name__
    keeps = activation.needs_calibration or any(True for _ in activation.buffers())
    selection = activation.selection
    is_of_batch = keeps or (selection is not None and not selection.per_row)
    if ranks.data.size > 1 and is_of_batch and not config.activation_fn.is_global:
        raise ValueError(
            f"Trainer: {kind} looks at a whole batch or keeps statistics of it, and each rank has only "
            f"some of its rows; work over the module's `ranks` and say is_global = True in {kind}."
        )
    if ranks.latents.size == 1:
        return
    if config.structure is not None:
        raise ValueError(
            f"Trainer: {config.structure} holds latents together that may be on different ranks; train it "
            "with latent_shards=1."
        )
    for part in (config.activation_fn, *trainer.objective):
        if not part.is_global:
            raise ValueError(
                f"Trainer: {type(part).__name__} does not say that it works where each rank holds only some "
                "of the latents; say is_global = True once it does (docs/extending.md), or train with "
                "latent_shards=1."
            )
    changed = [name for name in _PER_BATCH if _is_overridden(trainer, name)]
    if changed and not cls.is_global:
        raise ValueError(
            f"Trainer: {cls.__name__} overrides {', '.join(changed)} and does not say that it works where "
            "each rank holds only some of the latents; say is_global = True once it does "
            "(docs/extending.md), or train with latent_shards=1."
        )


def part_of_batch(batch: Tensor, trainer: "Trainer") -> Tensor:
    """This rank's rows; there may be none in a batch with fewer rows than ranks.

    Raises:
        ValueError: The first batch of a run is not the same on every rank.
    """
    if trainer.mesh is None:
        return batch
    batch = batch.to(trainer.crosscoder.W_enc.device)
    if trainer._is_fresh:
        _check_same("the batch", [batch], ranks=trainer.ranks)
    return batch[trainer.ranks.data.part(len(batch))]


def backward(losses: LossBreakdown, trainer: "Trainer", *, n_rows: int, n_tokens: int) -> LossBreakdown:
    """Gradients of the objective over the whole batch on every rank; gives the losses of the whole batch.

    Args:
        losses: This rank's losses; see `Ranks` for what is minimized.
        trainer: The trainer.
        n_rows: Rows of this rank.
        n_tokens: Rows of all ranks.
    """
    if trainer.mesh is None:
        losses.total.backward()
        return losses.detach()
    share, axis = n_rows / n_tokens, trainer.ranks.data
    (losses.total * share).backward()
    values = torch.stack([term.value.detach() for term in losses.terms.values()])
    values = values * share if n_rows else torch.zeros_like(values)
    totals = _sum_gradients(_trained(trainer), values, axis=axis, has_rows=n_rows > 0)
    return LossBreakdown(
        {
            name: WeightedTerm(total.to(term.value.dtype), term.weight)
            for total, (name, term) in zip(totals, losses.terms.items())
        }
    )


def gradient_norm(crosscoder: Crosscoder) -> Tensor:
    """Norm of the gradients of all latents, on every rank."""
    axis = crosscoder.ranks.latents
    if axis.size == 1:
        return _norm(crosscoder.parameters())
    keys, named = _keys(crosscoder.config), dict(crosscoder.named_parameters())
    of_latents = _norm([named[name] for name in named if name in keys])
    of_all = _norm([named[name] for name in named if name not in keys])
    squares = axis.sum(of_latents.double().square()) + of_all.double().square()
    return squares.sqrt().to(of_latents.dtype)


def evaluated(trainer: "Trainer") -> dict[str, float]:
    """Evaluate the whole crosscoder, on the first rank, and tell all; an error there is raised everywhere."""
    if trainer.mesh is None:
        with interruptible():
            return read_only(trainer.evaluate, trainer.crosscoder, name="evaluate", step=trainer.step)
    own, ranks = trainer.crosscoder, trainer.ranks
    whole = own if ranks.latents.size == 1 else trainer.whole_crosscoder()
    outcome: Any = None
    if ranks.is_main:
        trainer.crosscoder = whole
        whole.ranks = whole.activation.ranks = ALONE  # nobody else is called
        try:
            with interruptible():  # here alone: the others wait, and end as this rank does
                outcome = read_only(trainer.evaluate, whole, name="evaluate", step=trainer.step)
        except (Exception, Preempted) as error:
            outcome = error
        finally:
            trainer.crosscoder = own
            own.ranks = own.activation.ranks = ranks
    own.eval()
    told = ranks.gather_objects(outcome)[0]
    if isinstance(told, BaseException):
        raise outcome if ranks.is_main else told
    return told


def agree_on_stop(trainer: "Trainer") -> None:
    """Stop on every rank if a callback asked one of them to; say whether one of them was preempted."""
    if trainer.ranks.are_alone:
        return
    flags = torch.tensor([trainer.stop_reason is not None, is_preempted()], dtype=torch.uint8)
    has_stop, is_ending = trainer.ranks.max(flags.to(trainer.crosscoder.W_enc.device)).tolist()
    trainer._is_preempted = bool(is_ending)
    if has_stop:
        reasons = trainer.ranks.gather_objects(trainer.stop_reason)
        trainer.stop_reason = next(reason for reason in reasons if reason is not None)


@functools.lru_cache(maxsize=8)
def _keys(config: CrosscoderConfig) -> frozenset[str]:
    return latent_keys(config)


def _part_of(whole: Crosscoder, *, rows: slice) -> Crosscoder:
    memo: dict[int, Any] = {}  # of `deepcopy`: what is found in it is taken and not copied
    keys = _keys(whole.config)
    for name, tensor in (*whole.named_parameters(), *whole.named_buffers()):
        if name in keys:
            part = tensor.detach()[rows].clone()
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(part, tensor.requires_grad) if is_parameter else part
    return copy.deepcopy(whole, memo)


def _check_same(what: str, tensors: Sequence[Tensor], *, ranks: Ranks) -> None:
    facts = torch.stack([fact for tensor in tensors for fact in _facts(tensor.detach())])
    if not torch.equal(ranks.min(facts), ranks.max(facts)):
        raise ValueError(
            f"Trainer: {what} is not the same on every rank; each must be given the same whole crosscoder "
            "and the same whole batches, of which it then takes its part. Use the same seeds and data."
        )


def _facts(tensor: Tensor) -> list[Tensor]:
    """Numbers in which two different tensors hardly agree."""
    total = tensor.sum(dtype=torch.float64)
    norm = torch.linalg.vector_norm(tensor, dtype=torch.float64) if tensor.is_floating_point() else total
    return [total, norm, total.new_tensor(tensor.numel())]


def _sum_gradients(
    parameters: Sequence[nn.Parameter], numbers: Tensor, *, axis: Axis, has_rows: bool
) -> Tensor:
    """Sum every gradient over the axis, and some numbers, whose sums are given back.

    A parameter that no rank used keeps no gradient. A rank without rows has no part in a sum over tokens.
    What is small travels together: with each sum the ranks wait for each other.
    """
    if axis.size == 1:
        return numbers
    if not has_rows:
        for parameter in parameters:
            parameter.grad = None
    small = [parameter for parameter in parameters if parameter.numel() <= _SENT_TOGETHER]
    is_used = numbers.new_tensor([parameter.grad is not None for parameter in parameters])
    n_users, numbers, *sums = _summed([is_used, numbers, *map(_gradient, small)], axis=axis)
    of_small = dict(zip(small, sums))
    for parameter, n in zip(parameters, n_users.tolist()):
        if n > 0:
            parameter.grad = of_small[parameter] if parameter in of_small else _gradient(parameter)
            if parameter not in of_small:
                axis.sum_(parameter.grad)
    return numbers


def _summed(tensors: Sequence[Tensor], *, axis: Axis) -> list[Tensor]:
    """Sums of several tensors over the axis, which travel as one."""
    wide = functools.reduce(torch.promote_types, [tensor.dtype for tensor in tensors])
    sums = axis.sum(torch.cat([tensor.flatten().to(wide) for tensor in tensors]))
    parts = sums.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor).to(tensor.dtype) for part, tensor in zip(parts, tensors)]


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _trained(trainer: "Trainer") -> list[nn.Parameter]:
    """Every parameter once: those of the crosscoder, and others that the optimizer has."""
    groups = trainer.optimizer.param_groups
    return list(dict.fromkeys([*trainer.crosscoder.parameters(), *(p for g in groups for p in g["params"])]))


def _norm(parameters: Any) -> Tensor:
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def _is_overridden(trainer: "Trainer", name: str) -> bool:
    # Trainer itself, which cannot be imported here: the last class that defines both.
    base = [cls for cls in type(trainer).__mro__ if {"fit", "training_step"} <= vars(cls).keys()][-1]
    return getattr(type(trainer), name) is not getattr(base, name) or name in vars(trainer)
