"""The training step without autograd, for what nearly every run trains: top-k latents, reconstruction, AuxK.

It computes what `Trainer.training_step` computes through autograd, from the library's own gradients, on the
kernels that `kernels.dispatch` chooses. Anything that it does not know sends the trainer back to autograd.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from crosscoders.crosscoder import Crosscoder
from crosscoders.kernels.adam import AdamMatrix, AdamStep
from crosscoders.kernels.dispatch import make_step
from crosscoders.kernels.ops import encode
from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.kernels.step import Encoded, ExtraRows, StepKernels, StepWeights, UpdatePlan
from crosscoders.losses import AuxK, LossBreakdown, LossContext, LossTerm, Reconstruction, WeightedTerm

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Forward:
    """One forward pass in normalized space.

    Args:
        inputs: Activations times scale.
        residual: Reconstruction minus inputs.
        encoded: The selected latents.
        losses: Values and weights of the terms.
        extra: Gradients of the dead latents, if a term sends them any.
    """

    inputs: Tensor
    residual: Tensor
    encoded: Encoded
    losses: LossBreakdown
    extra: ExtraRows | None

    @property
    def latents(self) -> SparseLatents:
        """Latents of the batch."""
        return self.encoded.latents

    @property
    def reconstruction(self) -> Tensor:
        """Reconstruction times scale; formed when asked for."""
        return self.inputs + self.residual


@final
class FusedStep:
    """One crosscoder's weights and optimizer state on one backend's kernels.

    The moments are those of the optimizer, so a run can change between this step and autograd at any time.

    Args:
        crosscoder: The crosscoder to train, in place.
        objective: `Reconstruction`, and `AuxK` if wanted.
        optimizer: `torch.optim.Adam` with one group of all parameters.
        backend: Name that `choose_backend` gave.
        precision: "float32" or "bfloat16".
    """

    def __init__(
        self,
        crosscoder: Crosscoder,
        objective: Sequence[LossTerm],
        *,
        optimizer: torch.optim.Optimizer,
        backend: str,
        precision: str,
    ) -> None:
        self._crosscoder = crosscoder
        self._terms = {term.name: term for term in objective}
        self._optimizer = optimizer
        self._precision = precision
        self._kernels = make_step(backend, self._bind(), precision=precision)
        self._versions = self._current_versions()
        self._n_updates = int(self._state("W_enc")["step"])
        self._pending_count: _CountOnTheWay | None = None

    @torch.no_grad()
    def forward(self, batch: Tensor, context: LossContext) -> Forward:
        """Encode, reconstruct and evaluate the objective.

        Args:
            batch: Raw activations on the crosscoder's device.
            context: Progress, step and dead latents.
        """
        self._take_back_changes()
        selection = self._crosscoder.activation.selection
        assert selection is not None
        inputs = self._crosscoder.normalize(batch)
        encoded = self._kernels.encode(inputs, selection)
        self._crosscoder.activation.track(encoded.smallest_score)
        residual, square_sum = self._kernels.residual(encoded.latents, inputs)
        terms, extra = {}, None
        for name, term in self._terms.items():
            if isinstance(term, AuxK):
                value, extra = self._auxk(term, inputs, residual=residual, context=context)
            else:
                value = square_sum / inputs.shape[0]
            terms[name] = WeightedTerm(value, term.weight_at(context.progress))
        return Forward(
            inputs=inputs, residual=residual, encoded=encoded, losses=LossBreakdown(terms), extra=extra
        )

    @torch.no_grad()
    def update(self, forward: Forward, *, max_norm: float | None, check: Callable[[Tensor], None]) -> Tensor:
        """Gradients, clipping, Adam; gives the gradient norm before clipping.

        Args:
            forward: What `forward` gave.
            max_norm: Norm to clip to, or None.
            check: Told the norm, or a bound of it, before a weight changes, where asking need not wait.
        """
        weight = forward.losses.terms[Reconstruction.name].weight
        group, n = self._optimizer.param_groups[0], self._n_updates + 1
        self._optimizer.zero_grad(set_to_none=True)  # as after any step, no old gradient is left to be read
        norm = self._kernels.update(
            forward.residual * (2 * weight / forward.inputs.shape[0]),
            forward.encoded,
            forward.inputs,
            step=AdamStep(
                lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], eps=group["eps"], n=n
            ),
            plan=UpdatePlan(max_norm=max_norm, extra=forward.extra, check=check),
        )
        self._n_updates = n
        for name in PARAMETERS:
            self._state(name)["step"] += 1
            torch.autograd.graph.increment_version(getattr(self._crosscoder, name))
        self._versions = self._current_versions()
        return norm

    def expect_dead(self, mask: Tensor) -> None:
        """Start counting the dead latents of the next step, so that it need not wait for the number.

        Args:
            mask: The next step's `LossContext.dead_mask`.
        """
        if mask.is_cuda and AuxK.name in self._terms:
            self._pending_count = _CountOnTheWay(mask)

    @property
    def kernels(self) -> StepKernels:
        """The backend at work."""
        return self._kernels

    def is_bound(self) -> bool:
        """Whether weights and moments are still the tensors that this step updates."""
        for name in PARAMETERS:
            matrix, state = getattr(self._kernels.weights, name), self._state(name)
            pairs = (
                (matrix.weight, getattr(self._crosscoder, name)),
                (matrix.exp_avg, state.get("exp_avg")),
                (matrix.exp_avg_sq, state.get("exp_avg_sq")),
            )
            if any(now is None or ours.data_ptr() != now.data_ptr() for ours, now in pairs):
                return False
        return True

    def _auxk(
        self, term: AuxK, inputs: Tensor, *, residual: Tensor, context: LossContext
    ) -> tuple[Tensor, ExtraRows | None]:
        dead = self._dead_latents(context.dead_mask)
        if dead.numel() == 0:
            return inputs.new_zeros(()), None
        crosscoder, device = self._crosscoder, inputs.device.type
        rows = [getattr(crosscoder, name).detach()[dead].requires_grad_() for name in PARAMETERS[:3]]
        W_enc, b_enc, W_dec = rows
        low = self._precision == "bfloat16"
        with torch.enable_grad(), torch.autocast(device, dtype=torch.bfloat16, enabled=low):
            value = term.value_of_dead(
                encode(inputs, W_enc, b_enc),
                W_dec,
                residual=-residual,
                selection_scale=self._kernels.selection_scale()[dead],
                n_latents=crosscoder.n_latents,
            )
            weighted = term.weight_at(context.progress) * value
        gradients = torch.autograd.grad(weighted, rows)
        extra = ExtraRows(rows=dead, **dict(zip(PARAMETERS[:3], gradients)))
        return value.detach(), extra

    def _dead_latents(self, mask: Tensor) -> Tensor:
        pending, self._pending_count = self._pending_count, None
        if pending is None:
            return mask.nonzero().squeeze(1)
        return torch.nonzero_static(mask, size=pending.wait()).squeeze(1)

    def _bind(self) -> StepWeights:
        for name in PARAMETERS:
            parameter = getattr(self._crosscoder, name)
            state = self._state(name)
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        return StepWeights(**{name: self._matrix(name) for name in PARAMETERS})

    def _matrix(self, name: str) -> AdamMatrix:
        weight, state = getattr(self._crosscoder, name).detach(), self._state(name)
        moments = {key: state[key] for key in ("exp_avg", "exp_avg_sq")}
        if weight.ndim == 1:
            return AdamMatrix(weight=weight[None], **{key: value[None] for key, value in moments.items()})
        widths = (source.d_model for source in self._crosscoder.sources)
        return AdamMatrix(weight=weight, boundaries=(0, *itertools.accumulate(widths)), **moments)

    def _state(self, name: str) -> dict[str, Any]:
        return self._optimizer.state[getattr(self._crosscoder, name)]

    def _take_back_changes(self) -> None:
        """Derive norms and low-precision copies again if somebody else wrote a weight."""
        if self._current_versions() != self._versions:
            self._kernels.refresh()
            self._versions = self._current_versions()

    def _current_versions(self) -> list[int]:
        return [getattr(self._crosscoder, name)._version for name in PARAMETERS]


@final
class _CountOnTheWay:
    """A number of dead latents that travels to the host while the device goes on."""

    def __init__(self, mask: Tensor) -> None:
        self._count = torch.empty((), dtype=torch.int64, pin_memory=True)
        self._count.copy_(mask.sum(), non_blocking=True)
        self._arrived = torch.cuda.Event()
        self._arrived.record()

    def wait(self) -> int:
        """The number; waits for it only, not for what was queued behind it."""
        self._arrived.synchronize()
        return int(self._count)
