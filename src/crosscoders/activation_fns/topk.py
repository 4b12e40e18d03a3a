"""TopK: a fixed number of latents for each token."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from crosscoders._typing import typed
from crosscoders.activation_fns.base import (
    ActivationFn,
    ActivationModule,
    annealed_k,
    check_k,
    check_k_schedule,
)
from crosscoders.kernels.ops import row_topk_indices
from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.kernels.step import Selection
from crosscoders.parallel import row_topk_across


@final
@dataclass(frozen=True, kw_only=True)
class TopK(ActivationFn):
    """Keep the `k` latents with the largest scaled pre-activation for each token (Gao et al. 2406.04093).

    Args:
        k: Latents per token; fewer where fewer pre-activations are positive.
        k_initial: Start of a linear annealing to `k`; None for none.
        anneal_fraction: Part of the run over which `k` is annealed.
    """

    kind: ClassVar[str] = "topk"
    is_global: ClassVar[bool] = True
    k: int
    k_initial: int | None = None
    anneal_fraction: float = 0.1

    def __post_init__(self) -> None:
        check_k_schedule("TopK", k=self.k, k_initial=self.k_initial, anneal_fraction=self.anneal_fraction)

    @typed
    def build(self, n_latents: int) -> ActivationModule:
        """Make the module; raises ValueError if `k` exceeds `n_latents`."""
        check_k("TopK", k=self.k, n_latents=n_latents, k_initial=self.k_initial)
        return _TopK(self)


class _TopK(ActivationModule):
    def __init__(self, spec: TopK) -> None:
        super().__init__()
        self.spec = spec
        self.k = spec.k

    @property
    def expected_l0(self) -> float:
        return float(self.k)

    @property
    def selection(self) -> Selection:
        return Selection(k=self.k, per_row=True, final_k=self.spec.k)

    def set_progress(self, fraction: float) -> None:
        spec = self.spec
        self.k = annealed_k(
            fraction, k=spec.k, k_initial=spec.k_initial, anneal_fraction=spec.anneal_fraction
        )

    def forward(self, pre_acts: Tensor, selection_scale: Tensor) -> SparseLatents:
        scores, axis = pre_acts.detach() * selection_scale, self.ranks.latents
        is_spread = axis.size > 1
        kept = row_topk_across(scores, self.k, axis=axis) if is_spread else row_topk_indices(scores, self.k)
        return SparseLatents.gather(pre_acts, kept)
