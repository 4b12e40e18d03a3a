"""ReLU: every positive pre-activation fires; sparsity comes from a penalty."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from crosscoders._typing import typed
from crosscoders.activation_fns.base import ActivationFn, ActivationModule


@final
@dataclass(frozen=True, kw_only=True)
class ReLU(ActivationFn):
    """Keep every positive pre-activation (Lindsey et al. 2024); use it with `DecoderNormL1`."""

    kind: ClassVar[str] = "relu"
    is_global: ClassVar[bool] = True

    @typed
    def build(self, n_latents: int) -> ActivationModule:
        """Make the module; it has no state."""
        return _ReLU()


class _ReLU(ActivationModule):
    def forward(self, pre_acts: Tensor, selection_scale: Tensor) -> Tensor:
        return pre_acts.relu()
