"""BatchTopK: a fixed mean number of latents, shared out over the batch; one threshold at inference."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.activation_fns.base import (
    ActivationFn,
    ActivationModule,
    annealed_k,
    check_k,
    check_k_schedule,
)
from crosscoders.kernels.ops import batch_topk_indices, threshold_indices
from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.kernels.step import Selection
from crosscoders.parallel import batch_topk_across

_UNSET = -1.0


@final
@dataclass(frozen=True, kw_only=True)
class BatchTopK(ActivationFn):
    """Keep the `k * batch` largest scaled pre-activations of a batch; at inference those above a threshold.

    With v = relu(pre) * sum of decoder norms, training keeps the top n*k entries of v over the batch; at
    inference v > theta, theta = mean of the smallest kept v (Bussmann et al. 2412.06410; for crosscoders
    Minder, Dumas et al. 2504.02922). While training, theta is a moving average; `Trainer` replaces it
    by the mean over calibration batches with frozen weights.

    Args:
        k: Mean latents per token.
        k_initial: Start of a linear annealing to `k`; None for none.
        anneal_fraction: Part of the run over which `k` is annealed.
        threshold_momentum: Weight of the old value in the moving average, for evaluation while training.

    Raises:
        ValueError: `k` or `k_initial` below 1, `k_initial` below `k`, or a fraction or momentum out of range.
    """

    kind: ClassVar[str] = "batch_topk"
    is_global: ClassVar[bool] = True
    k: int
    k_initial: int | None = None
    anneal_fraction: float = 0.1
    threshold_momentum: float = 0.99

    def __post_init__(self) -> None:
        check_k_schedule(
            "BatchTopK", k=self.k, k_initial=self.k_initial, anneal_fraction=self.anneal_fraction
        )
        if not 0.0 <= self.threshold_momentum < 1.0:
            raise ValueError(
                f"BatchTopK: threshold_momentum must be in [0, 1), got {self.threshold_momentum}."
            )

    @typed
    def build(self, n_latents: int) -> ActivationModule:
        """Make the module; raises ValueError if `k` exceeds `n_latents`."""
        check_k("BatchTopK", k=self.k, n_latents=n_latents, k_initial=self.k_initial)
        return _BatchTopK(self)


class _BatchTopK(ActivationModule):
    needs_calibration = True
    threshold: Tensor

    def __init__(self, spec: BatchTopK) -> None:
        super().__init__()
        self.spec = spec
        self.k = spec.k
        self.register_buffer("threshold", torch.tensor(_UNSET))

    @property
    def expected_l0(self) -> float:
        return float(self.k)

    @property
    def selection(self) -> Selection:
        return Selection(k=self.k, per_row=False, final_k=self.spec.k)

    def set_progress(self, fraction: float) -> None:
        spec = self.spec
        self.k = annealed_k(
            fraction, k=spec.k, k_initial=spec.k_initial, anneal_fraction=spec.anneal_fraction
        )

    def forward(self, pre_acts: Tensor, selection_scale: Tensor) -> SparseLatents:
        scores = pre_acts.detach() * selection_scale
        if self.training:
            kept, smallest = self._select(scores, self.k)
            self.track(smallest)
        else:
            kept = threshold_indices(scores, self._known_threshold().to(scores.dtype))
        return SparseLatents.gather(pre_acts, kept)

    @torch.no_grad()
    def calibration_score(self, pre_acts: Tensor, selection_scale: Tensor) -> Tensor:
        scores = pre_acts * selection_scale
        _, smallest = self._select(scores, self.spec.k)
        if smallest.isposinf():
            n_tokens = self.ranks.data.count(len(scores), device=scores.device)
            raise ValueError(
                f"BatchTopK: none of {n_tokens} calibration tokens has a positive "
                "pre-activation, so no threshold exists; the crosscoder is dead (lower the learning rate or "
                "add AuxK)."
            )
        return smallest

    @torch.no_grad()
    def calibrate(self, scores: Tensor) -> None:
        self.threshold.copy_(scores.double().mean())

    @torch.no_grad()
    def track(self, smallest_score: Tensor) -> None:
        smallest = smallest_score.to(self.threshold.dtype)
        moved = torch.lerp(smallest, self.threshold, self.spec.threshold_momentum)
        moved = torch.where(self.threshold < 0, smallest, moved)
        self.threshold.copy_(torch.where(smallest.isfinite(), moved, self.threshold))

    def _select(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """What this rank keeps, and the smallest score that is kept of the whole batch, infinite if none."""
        if not self.ranks.are_alone:
            return batch_topk_across(scores, k, ranks=self.ranks)
        kept = batch_topk_indices(scores, k)
        selected = scores.flatten()[kept]
        return kept, selected.min() if kept.numel() else selected.new_tensor(torch.inf)

    def _known_threshold(self) -> Tensor:
        if bool(self.threshold < 0):
            raise ValueError(
                "BatchTopK: eval mode needs a threshold and this crosscoder has none yet; train it "
                "(Trainer.fit), call activation.calibrate, or use train mode, where latents depend on the "
                "whole batch."
            )
        return self.threshold
