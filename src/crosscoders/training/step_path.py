"""Which way a training step goes: without autograd, or through it where something was overridden."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import torch
import torch.nn.modules.module as torch_module
import torch.optim.optimizer as torch_optimizer
from torch import Tensor, nn

from crosscoders.crosscoder import Crosscoder
from crosscoders.errors import DivergedError, KernelUnavailableError
from crosscoders.kernels.dispatch import StepShape, announce, choose_backend, explain
from crosscoders.losses import AuxK, LossTerm, Reconstruction
from crosscoders.training.fused_step import PARAMETERS, FusedStep

if TYPE_CHECKING:
    from crosscoders.training.trainer import Trainer

_METHODS = ("configure_optimizer", "training_step", "compute_losses", "after_optimizer_step")


@final
class StepPath:
    """Decides at every step, since hooks, modes and weights may change between two of them."""

    def __init__(self) -> None:
        self._fused: FusedStep | None = None
        self._bound_to: tuple[object, ...] = ()

    def forget(self) -> None:
        """Make the fused step anew, after weights or moments were replaced."""
        self._fused = None

    def begin(self, trainer: "Trainer") -> None:
        """Prepare for a run; a demand for kernels that cannot run fails here, before the first step."""
        self.forget()
        self.fused_step(trainer)

    def fused_step(self, trainer: "Trainer") -> FusedStep | None:
        """The step without autograd, or None where autograd has to run.

        Raises:
            KernelUnavailableError: The config demands kernels that cannot run this step.
        """
        reason = _autograd_reason(trainer)
        if reason is not None:
            self.raise_if_failed(trainer.step)
            self.forget()
            announce(f"training step: autograd, because {reason}.")
            return None
        bound_to = (trainer.crosscoder, trainer.optimizer, trainer.objective, trainer.config)
        if self._fused is None or self._bound_to != bound_to or not self._fused.is_bound():
            precision = trainer.config.precision
            shape = _shape(trainer.crosscoder, precision)
            self._bound_to = bound_to
            self._fused = FusedStep(
                trainer.crosscoder,
                trainer.objective,
                optimizer=trainer.optimizer,
                backend=choose_backend(trainer.config.backend, shape=shape),
                precision=precision,
            )
        return self._fused

    def raise_if_failed(self, step: int) -> None:
        """Ask the device, which is waited for, whether it refused an update; called where it costs little.

        Raises:
            DivergedError: A gradient was not finite; since then no weight has changed.
        """
        failed = None if self._fused is None else self._fused.kernels.has_failed
        if failed is not None and bool(failed):
            raise DivergedError(
                f"Trainer: a gradient norm at or before step {step} was not finite; no weight has been "
                "updated since. Lower lr, lengthen warmup_fraction, or look for outliers in the activations."
            )

    def explain(self, trainer: "Trainer") -> str:
        """Which kernels the next step runs on, and why."""
        reason = _autograd_reason(trainer)
        if reason is not None:
            return f"autograd over the library's functions, because {reason}."
        shape = _shape(trainer.crosscoder, trainer.config.precision)
        backend = choose_backend(trainer.config.backend, shape=shape)
        return explain(shape) if trainer.config.backend == "auto" else f"backend {backend!r}, as configured."


def _autograd_reason(trainer: "Trainer") -> str | None:
    """Why autograd runs the step; raises if the config demands a step without it."""
    if trainer.config.backend == "reference":
        return "the config asks for backend 'reference'"
    reason = _spread(trainer) or _overridden(trainer)
    reason = reason or _unknown(trainer.crosscoder, trainer.objective, trainer.optimizer)
    if reason is not None and trainer.config.backend != "auto":
        raise KernelUnavailableError(
            f"Trainer: backend {trainer.config.backend!r} was asked for, but {reason}; use backend='auto' "
            "or 'reference', which run the step through autograd."
        )
    return reason


def _spread(trainer: "Trainer") -> str | None:
    axes = (trainer.ranks.data, trainer.ranks.latents)
    return None if trainer.mesh is None else f"a mesh of {axes[0].size} x {axes[1].size} ranks is given"


def _overridden(trainer: "Trainer") -> str | None:
    # Trainer itself, which cannot be imported here: the last class that defines both.
    base = [cls for cls in type(trainer).__mro__ if {"fit", "training_step"} <= vars(cls).keys()][-1]
    changed = [n for n in _METHODS if getattr(type(trainer), n) is not getattr(base, n) or n in vars(trainer)]
    return f"{type(trainer).__name__} overrides {', '.join(changed)}" if changed else None


def _unknown(
    crosscoder: Crosscoder, objective: Sequence[LossTerm], optimizer: torch.optim.Optimizer
) -> str | None:
    """What of these the step without autograd does not know, or None."""
    if crosscoder.config.structure is not None:
        return f"the crosscoder is held to {crosscoder.config.structure}"
    if crosscoder.activation.selection is None:
        return f"{type(crosscoder.config.activation_fn).__name__} does not select a fixed number of latents"
    names = sorted(type(term).__name__ for term in objective if type(term) not in (Reconstruction, AuxK))
    if names or Reconstruction.name not in {term.name for term in objective}:
        used = [type(term).__name__ for term in objective]
        return f"the objective {used} is not Reconstruction, with or without AuxK"
    parameters = [getattr(crosscoder, name) for name in PARAMETERS]
    if any(not p.requires_grad or p.dtype is not torch.float32 for p in parameters):
        return "a parameter is frozen or not float32"
    if {id(p) for p in crosscoder.parameters()} != {id(p) for p in parameters}:
        return "the crosscoder has further parameters"
    group, *others = optimizer.param_groups
    known = type(optimizer) is torch.optim.Adam and not others
    if not known or any(group[name] for name in ("weight_decay", "amsgrad", "maximize")):
        return "the optimizer is not plain Adam with one group"
    if _has_hooks(crosscoder) or any(map(_has_tensor_hooks, parameters)) or _has_optimizer_hooks(optimizer):
        return "hooks are registered on the crosscoder, a parameter or the optimizer, or on all of their kind"
    return None


def _shape(crosscoder: Crosscoder, precision: str) -> StepShape:
    """What the choice of kernels depends on."""
    selection = crosscoder.activation.selection
    return StepShape(
        device=str(crosscoder.W_enc.device),
        n_latents=crosscoder.n_latents,
        k=crosscoder.n_latents if selection is None else selection.final_k or selection.k,
        precision=precision,
    )


def _has_hooks(module: nn.Module) -> bool:
    names = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    if any(getattr(torch_module, f"_global_{name}", None) for name in names):
        return True
    return any(getattr(part, f"_{name}") for part in module.modules() for name in names)


def _has_tensor_hooks(parameter: Tensor) -> bool:
    return bool(parameter._backward_hooks) or bool(getattr(parameter, "_post_accumulate_grad_hooks", None))


def _has_optimizer_hooks(optimizer: torch.optim.Optimizer) -> bool:
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    of_all = [getattr(torch_optimizer, f"_global_optimizer_{when}_hooks", None) for when in ("pre", "post")]
    return any(hooks) or any(of_all) or "step" in vars(optimizer)
