"""Training: a fixed loop with template methods to override, and callbacks that only observe."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder, CrosscoderOutput
from crosscoders.losses import LossBreakdown, LossContext, LossTerm, check_objective, compute_losses
from crosscoders.parallel import ranks_of
from crosscoders.training.batches import check_batch, length_of_run
from crosscoders.training.calibration import BatchRing, calibrate
from crosscoders.training.callbacks import Callback
from crosscoders.training.checkpoints.files import has_checkpoint
from crosscoders.training.checkpoints.state import (
    load_checkpoint,
    load_trainer_state,
    save_checkpoint,
    trainer_state,
)
from crosscoders.training.config import TrainerConfig
from crosscoders.training.faults import checkpoint_faults
from crosscoders.training.fused_step import Forward
from crosscoders.training.loop import run
from crosscoders.training.observation import read_only, step_metrics
from crosscoders.training.on_ranks.gather import whole_crosscoder
from crosscoders.training.on_ranks.spread import (
    agree_on_stop,
    check_can_spread,
    evaluated,
    part_of_batch,
    spread,
)
from crosscoders.training.report import StepReport
from crosscoders.training.step_path import StepPath
from crosscoders.training.update import set_learning_rate
from crosscoders.training.weight_update import fused_update, update

_MAX_DEAD_AFTER_TOKENS = 10_000_000


class Trainer:
    """Trains a crosscoder on any iterable of `[batch, width]` tensors of raw activations.

    Override the template methods (`configure_optimizer`, `training_step`, `compute_losses`,
    `after_optimizer_step`, `evaluate`) to change training, with the contract of docs/extending.md; pass
    callbacks to observe it. No interval of logging, evaluation or checkpoints changes a weight. After `fit`
    the crosscoder is in eval mode, its inference threshold, if any, calibrated on the last batches.

    Args:
        crosscoder: The crosscoder to train, in place.
        objective: Loss terms with different names.
        config: Numbers of the run.
        callbacks: Observers.
        evaluation: Called with the crosscoder in eval mode and without gradient; gives metrics by name.
        checkpoint_dir: Folder of the run's checkpoints; needed if `config.checkpoint_every_steps` is set.
        mesh: Ranks over which rows ("data") and latents ("latents") are spread, see docs/scale.md: give each
            the same crosscoder and batches. With latent shards `self.crosscoder` is this rank's part.

    Raises:
        ValueError: A folded crosscoder, two terms of one name, checkpoints without a `checkpoint_dir`, or
            what cannot be spread over the mesh.

    Example:
        >>> import torch
        >>> from crosscoders.activation_fns import BatchTopK
        >>> from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
        >>> from crosscoders.losses import AuxK, Reconstruction
        >>> from crosscoders.sources import Source
        >>> from crosscoders.training import Trainer, TrainerConfig
        >>> sources = (Source(name="base", d_model=4), Source(name="distilled", d_model=4))
        >>> config = CrosscoderConfig(sources=sources, n_latents=16, activation_fn=BatchTopK(k=2))
        >>> trainer = Trainer(Crosscoder(config), [Reconstruction(), AuxK()], config=TrainerConfig(lr=1e-3))
        >>> trainer.fit([torch.randn(32, 8) for _ in range(5)])
        >>> trainer.step
        5
    """

    is_global: ClassVar[bool] = False  # whether what a subclass overrides works on a part of the latents

    def __init__(
        self,
        crosscoder: Crosscoder,
        objective: Sequence[LossTerm],
        *,
        config: TrainerConfig,
        callbacks: Sequence[Callback] = (),
        evaluation: Callable[[Crosscoder], dict[str, float]] | None = None,
        checkpoint_dir: Path | str | None = None,
        mesh: DeviceMesh | None = None,
    ) -> None:
        check_objective(objective)
        if crosscoder.config.is_folded:
            raise ValueError(
                "Trainer: the crosscoder's scales are folded into its weights; train crosscoder.unfold()."
            )
        if config.checkpoint_every_steps and checkpoint_dir is None:
            raise ValueError(
                f"Trainer: checkpoint_every_steps={config.checkpoint_every_steps} needs checkpoint_dir."
            )
        self.mesh, self.ranks = mesh, ranks_of(mesh)
        self.crosscoder = spread(crosscoder, mesh)
        self.objective = tuple(objective)
        check_can_spread(self, self.ranks)
        self.config = config
        self.callbacks = tuple(callbacks)
        self.evaluation = evaluation
        self.checkpoint_dir = None if checkpoint_dir is None else Path(checkpoint_dir)
        self.step = 0
        self.tokens_seen = 0
        self.total_tokens: int | None = None
        self.stop_reason: str | None = None
        self.failure: Exception | None = None
        self.last_evaluation: dict[str, float] | None = None
        self.tokens_since_fired = torch.zeros_like(self.crosscoder.b_enc, dtype=torch.int64)
        self._optimizer: torch.optim.Optimizer | None = None
        self._path = StepPath()
        self._position: dict[str, Any] | None = None
        self._is_fresh = True
        self._is_preempted = False  # as the ranks agreed after the last step
        self._batches: Iterable[Any] | None = None
        self._ring = BatchRing(config.calibration_batches if crosscoder.activation.needs_calibration else 0)

    def configure_optimizer(self) -> torch.optim.Optimizer:
        """Make the optimizer. Protected API: override to change it or its groups; `super()` is not needed.

        Each group's learning rate is the peak of its schedule.
        """
        fused = self.crosscoder.W_enc.device.type in ("cpu", "cuda")
        return torch.optim.Adam(
            self.crosscoder.parameters(), lr=self.config.lr, betas=self.config.betas, fused=fused
        )

    def compute_losses(self, output: CrosscoderOutput, context: LossContext) -> LossBreakdown:
        """Losses of one step. Protected API: override for another objective; `super()` is not needed.

        Args:
            output: The forward pass of the batch; its normalized inputs are in it.
            context: Progress, step and dead latents.

        Returns:
            The breakdown whose total is minimized and logged.
        """
        return compute_losses(self.objective, output, crosscoder=self.crosscoder, context=context)

    def after_optimizer_step(self) -> None:
        """Constrain weights after each update, without gradient. Protected API: `super()` is not needed."""

    def evaluate(self) -> dict[str, float]:
        """Metrics on held-out data. Protected API: override for your own; `super()` first keeps these.

        Runs in eval mode without gradient and must not change a parameter.
        """
        return {} if self.evaluation is None else dict(self.evaluation(self.crosscoder))

    def training_step(self, batch: Tensor) -> StepReport:
        """One update. Protected API: override rarely, for work on gradients; `super()` first or last.

        Args:
            batch: Raw activations, checked and on the crosscoder's device.

        Returns:
            What happened.
        """
        n_tokens = self.ranks.data.count(batch.shape[0], device=batch.device)
        progress = self._progress(n_tokens)
        report = functools.partial(
            StepReport,
            step=self.step + 1,
            tokens_seen=self.tokens_seen + n_tokens,
            n_tokens=n_tokens,
            learning_rate=set_learning_rate(
                self.optimizer, progress, config=self.config, total_tokens=self._known_total()
            ),
        )
        self.crosscoder.activation.set_progress(progress)
        context = LossContext(progress=progress, step=self.step, dead_mask=self.dead_mask())
        fused = self._path.fused_step(self)
        make = update if fused is None else functools.partial(fused_update, fused)
        done = make(self, batch, context, n_tokens=n_tokens)
        return self._done(report(losses=done.losses, grad_norm=done.grad_norm), done.forward)

    @typed
    def explain(self) -> str:
        """Say in one sentence which kernels the next step runs on and why.

        Raises:
            KernelUnavailableError: The config demands kernels that cannot run this step.
        """
        return self._path.explain(self)

    @final
    @typed
    def fit(self, batches: Iterable[Any]) -> None:
        """Train until the batches end, `total_tokens` are reached, or a stop is requested.

        Args:
            batches: `[batch, width]` tensors of raw activations; a sequence, or an iterable with `state_dict`
                and `load_state_dict`, can be resumed.

        Raises:
            ValueError: The length of the run is not known, a batch cannot be trained on, there is none, or
                the batches cannot be resumed.
            RuntimeError: The gradient is not finite, or a callback changed a parameter.
            KernelUnavailableError: The config demands kernels that cannot run the step.
        """
        run((self,), batches, transforms=(None,), batches_per_round=1)

    @typed
    def request_stop(self, reason: str) -> None:
        """End the run after this step; the reason is kept in `stop_reason`.

        Args:
            reason: A sentence for the log.
        """
        self.stop_reason = reason

    @typed
    def whole_crosscoder(self) -> Crosscoder:
        """The crosscoder with the latents of all ranks, which call this together; without a mesh its own."""
        return self.crosscoder if self.mesh is None else whole_crosscoder(self.crosscoder)

    def dead_mask(self) -> Tensor:
        """True for each latent that has not fired in the last `dead_after_tokens` tokens."""
        return self.tokens_since_fired >= self.dead_after_tokens

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer in use, made by `configure_optimizer` when it is first needed."""
        if self._optimizer is None:
            self._optimizer = self.configure_optimizer()
            for group in self._optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
        return self._optimizer

    @property
    def dead_after_tokens(self) -> int:
        """Tokens of silence after which a latent counts as dead."""
        if self.config.dead_after_tokens is not None:
            return self.config.dead_after_tokens
        return min(_MAX_DEAD_AFTER_TOKENS, max(1, self._known_total() // 20))

    @property
    def waits(self) -> Any:
        """Who has waited for whom, where the batches in use tell it (`prefetch.Waits`), else None."""
        return getattr(self._batches, "waits", None)

    def summary(self) -> dict[str, Any]:
        """Facts about the run, JSON-ready, to keep with the weights. Protected API: `super()` first."""
        return {
            "config": self.config.to_dict(),
            "objective": [repr(term) for term in self.objective],
            "steps": self.step,
            "tokens_seen": self.tokens_seen,
            "total_tokens": self.total_tokens,
            "stop_reason": self.stop_reason,
            "evaluation": self.last_evaluation,
        }

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that the next step depends on, except the position in the data.

        Protected API: override with `super()` first and add keys, of the same value on every rank. What is
        spread over ranks is here in this rank's part.
        """
        return trainer_state(self)

    @typed
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave. Protected API: override with `super()` first.

        Args:
            state: State of a trainer with the same crosscoder config, objective and numbers; only the
                logging, evaluation and checkpoint intervals may differ.

        Raises:
            ValueError: Something else differs.
        """
        load_trainer_state(self, state)

    @typed
    def resume(self, path: Path | str) -> None:
        """Continue a run from a checkpoint; the next `fit` takes up its data where the checkpoint left them.

        Args:
            path: A checkpoint, or a folder of checkpoints, of which the newest is taken.

        Raises:
            CheckpointError: There is no checkpoint or it is damaged.
            ValueError: It belongs to a run with other settings.
        """
        self._position = load_checkpoint(self, Path(path))

    def _begin(self, batches: Iterable[Tensor]) -> dict[str, Any] | None:
        """Fix the length of the run; gives the position in the data from which it goes on."""
        total = length_of_run(batches, configured=self.config.total_tokens, begun_with=self.total_tokens)
        if self._position is None and self.checkpoint_dir is not None and has_checkpoint(self.checkpoint_dir):
            raise FileExistsError(
                f"Trainer.fit: {self.checkpoint_dir} holds checkpoints of another run; call resume with "
                "it, or choose an empty folder."
            )
        self.total_tokens, self.stop_reason, self.failure = total, None, None
        self._batches = batches
        return self._position

    def _start(self) -> None:
        self._position, self._is_fresh, self._is_preempted = None, True, False
        self._path.begin(self)
        self._emit("on_fit_start")

    def _step(self, batch: object, position: Callable[[], dict[str, Any]]) -> None:
        """Train on one batch; `position` tells where the data stand after it."""
        rows = check_batch(batch, sources=self.crosscoder.sources, step=self.step)
        rows = part_of_batch(rows, self).to(self.crosscoder.W_enc.device)
        self._is_fresh = False
        self.crosscoder.train()
        self._ring.add(rows)
        report = self.training_step(rows)
        self._emit("on_step_end", report)
        if _is_due(self.step, self.config.evaluate_every_steps):
            self._evaluate()
        if _is_due(self.step, self.config.checkpoint_every_steps):
            self._checkpoint(position())
        agree_on_stop(self)

    def _finish(self) -> None:
        if self.step == 0:
            raise ValueError(
                "Trainer.fit: the batches gave nothing; expected one [batch, width] tensor or more."
            )
        self._path.raise_if_failed(self.step)
        self.crosscoder.activation.set_progress(1.0)
        self.crosscoder.eval()
        if self._ring.batches:
            calibrate(self.crosscoder, self._ring.batches)
        if type(self).evaluate is not Trainer.evaluate or self.evaluation is not None:
            self._evaluate()
        self._emit("on_fit_end")
        self._batches = None  # a buffer is large

    def _evaluate(self) -> None:
        self._path.raise_if_failed(self.step)
        self.last_evaluation = evaluated(self)
        self._emit("on_evaluate", self.last_evaluation)

    def _checkpoint(self, position: dict[str, Any]) -> None:
        self._path.raise_if_failed(self.step)
        with checkpoint_faults(self):
            path = save_checkpoint(self, position)
        self._emit("on_checkpoint", path)

    def _emit(self, event: str, *args: Any) -> None:
        for callback in self.callbacks:
            hook = functools.partial(getattr(callback, event), self, *args)
            read_only(hook, self.crosscoder, name=f"{type(callback).__name__}.{event}", step=self.step)

    def _progress(self, n_tokens: int) -> float:
        """Part of the run that has passed in the middle of a batch of this many tokens."""
        return min(1.0, (self.tokens_seen + n_tokens / 2) / self._known_total())

    def _known_total(self) -> int:
        if self.total_tokens is None:
            raise ValueError("Trainer: the length of the run is known only once fit has begun.")
        return self.total_tokens

    def _done(self, report: StepReport, forward: CrosscoderOutput | Forward) -> StepReport:
        """Count a step that was done, and measure it where that is due."""
        self.step, self.tokens_seen = report.step, report.tokens_seen
        if not _is_due(self.step, self.config.log_every_steps):
            return report
        self._path.raise_if_failed(self.step)
        sources, dead = self.crosscoder.sources, self.dead_mask()
        numbers = step_metrics(forward, sources=sources, dead_mask=dead, ranks=self.ranks)
        return dataclasses.replace(report, metrics=report.scalars() | numbers)


def _is_due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0
