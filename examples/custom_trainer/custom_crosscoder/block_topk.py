"""BlockTopK: the dictionary is cut into blocks, and each block gives its largest latents."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from crosscoders.activation_fns import ActivationFn, ActivationModule
from crosscoders.kernels import SparseLatents


@final
@dataclass(frozen=True, kw_only=True)
class BlockTopK(ActivationFn):
    """Keep, for each token, the `k_per_block` largest scaled pre-activations of every block of latents.

    Like TopK, but no part of the dictionary can go silent because another one is louder; the search is local
    to a block. A latent ranks by its pre-activation times the sum of its decoder norms, as in TopK.

    Args:
        n_blocks: Blocks of equal size into which the latents are cut, in order.
        k_per_block: Latents per block and token; fewer where fewer pre-activations are positive.
    """

    kind: ClassVar[str] = "block_topk"
    n_blocks: int
    k_per_block: int = 1

    def __post_init__(self) -> None:
        if self.n_blocks < 1 or self.k_per_block < 1:
            raise ValueError(
                "BlockTopK: n_blocks and k_per_block must be at least 1, got "
                f"{self.n_blocks} and {self.k_per_block}."
            )

    def build(self, n_latents: int) -> ActivationModule:
        """Make the module; raises ValueError if the latents cannot be cut into such blocks."""
        if n_latents % self.n_blocks or n_latents // self.n_blocks < self.k_per_block:
            raise ValueError(
                f"BlockTopK: {n_latents} latents cannot be cut into {self.n_blocks} equal blocks of at least "
                f"{self.k_per_block}; choose n_latents as a multiple of n_blocks."
            )
        return _BlockTopK(self)


class _BlockTopK(ActivationModule):
    def __init__(self, spec: BlockTopK) -> None:
        super().__init__()
        self.spec = spec

    @property
    def expected_l0(self) -> float:
        return float(self.spec.n_blocks * self.spec.k_per_block)

    def forward(self, pre_acts: Tensor, selection_scale: Tensor) -> SparseLatents:
        scores = (pre_acts.detach() * selection_scale).unflatten(1, (self.spec.n_blocks, -1))
        top = scores.topk(self.spec.k_per_block, dim=-1)
        is_kept = scores.new_zeros(scores.shape).scatter(-1, top.indices, 1.0) * (scores > 0)
        return SparseLatents.gather(pre_acts, is_kept.flatten().nonzero().squeeze(1))
