"""What an activation function is: a frozen spec that builds a module.

A new one is one file: a frozen dataclass deriving from `ActivationFn` with a `kind`, and the
`ActivationModule` that it builds. `crosscoders.testing.check_activation_fn` checks it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crosscoders._specs import register_kind, spec_from_dict, spec_to_dict
from crosscoders._typing import typed
from crosscoders.kernels.sparse_latents import SparseLatents
from crosscoders.kernels.step import Selection
from crosscoders.parallel import ALONE, Ranks

_registry: dict[str, type["ActivationFn"]] = {}


class ActivationModule(nn.Module):
    """Turns pre-activations into latents; holds what is learned or tracked.

    Train and eval mode may differ (BatchTopK); in eval mode a token's latents depend on that token only.
    A trainer on several ranks sets `ranks`; see `ActivationFn.is_global` for who reads it.
    """

    needs_calibration: bool = False
    ranks: Ranks = ALONE

    def forward(
        self, pre_acts: Float[Tensor, "batch latent"], selection_scale: Float[Tensor, " latent"]
    ) -> Float[Tensor, "batch latent"] | SparseLatents:
        """Latents of each token.

        Args:
            pre_acts: Pre-activations.
            selection_scale: Summed decoder norm of each latent, by which top-k families rank; carries no
                gradient. Others ignore it.

        Returns:
            Dense latents [batch latent], or the entries that fire; 0 where nothing fires.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no forward.")

    @property
    def expected_l0(self) -> float | None:
        """Latents per token that the function aims at now, or None if it sets no number."""
        return None

    def set_progress(self, fraction: float) -> None:
        """Told before each training step how much of the run has passed; must depend on nothing else.

        Args:
            fraction: Part of the run that has passed, from 0 to 1.
        """

    @property
    def selection(self) -> Selection | None:
        """The fixed number of latents that training selects now by `pre_acts * selection_scale`, if it does.

        A module that gives one promises that in train mode `forward` stores the selected pre-activations
        unchanged and then calls `track`; the trainer may then do the same without calling `forward`.
        """
        return None

    def track(self, smallest_score: Float[Tensor, ""]) -> None:
        """Told the smallest selected score of each training batch, infinite if there is none.

        Args:
            smallest_score: Smallest score that the batch's selection kept, in normalized space.
        """

    def calibration_score(
        self, pre_acts: Float[Tensor, "batch latent"], selection_scale: Float[Tensor, " latent"]
    ) -> Float[Tensor, ""]:
        """Statistic of one batch that `calibrate` averages; only if `needs_calibration`.

        Args:
            pre_acts: Pre-activations of the batch.
            selection_scale: Summed decoder norm of each latent.

        Returns:
            The statistic, in the units of scores (normalized space).
        """
        raise NotImplementedError(f"{type(self).__name__} needs no calibration.")

    def calibrate(self, scores: Float[Tensor, " batch"]) -> None:
        """Fix the inference rule from the scores of several batches, after training with frozen weights.

        Args:
            scores: One `calibration_score` per calibration batch.
        """
        raise NotImplementedError(f"{type(self).__name__} needs no calibration.")


@dataclass(frozen=True, kw_only=True)
class ActivationFn(ABC):
    """Spec of an activation function: hashable, printable, JSON-ready, and able to build its module.

    A subclass says its `kind`, under which checkpoints store it, and whether its latents can be negative.
    One whose latents depend on more than their own token and latent must, to train on several ranks, work
    over the module's `ranks`: each has some rows of the batch and some latents. It then says `is_global`,
    as does one that looks at nothing else. Without it the latents stay on one rank, and so does a module
    that keeps statistics.
    """

    kind: ClassVar[str]
    is_nonnegative: ClassVar[bool] = True
    is_global: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        register_kind(_registry, cls, family="ActivationFn")

    @abstractmethod
    def build(self, n_latents: int) -> ActivationModule:
        """Make the module for this many latents.

        Args:
            n_latents: Number of latents of the crosscoder.

        Returns:
            The module, in training mode.
        """

    def to_dict(self) -> dict[str, Any]:
        """The kind and the parameters, JSON-ready; `activation_fn_from_dict` inverts it."""
        return spec_to_dict(self)


@typed
def activation_fn_from_dict(data: Mapping[str, Any], *, fill_defaults: bool = False) -> ActivationFn:
    """Rebuild a spec from `ActivationFn.to_dict`.

    Args:
        data: The kind and every parameter.
        fill_defaults: Parameters left out take their defaults: for what people write, never for artifacts.

    Returns:
        The spec.

    Raises:
        ValueError: Unknown kind, or unknown or missing parameters.
    """
    return spec_from_dict(_registry, data, where="activation_fn", fill_defaults=fill_defaults)


def check_k(kind: str, *, k: int, n_latents: int, k_initial: int | None) -> None:
    """Raise ValueError unless the `k` of a top-k family fits the number of latents."""
    for name, value in (("k", k), ("k_initial", k_initial)):
        if value is not None and value > n_latents:
            raise ValueError(f"{kind} keeps {name}={value} latents but the crosscoder has only {n_latents}.")


def check_same_ranking(stored: Tensor, summed: Tensor) -> None:
    """Raise ValueError if a stored selection weight is not the summed decoder norms, up to rounding."""
    if not ranks_alike(stored, summed):
        raise ValueError(
            "Crosscoder.unfold: this crosscoder ranks latents by a selection weight that is not the sum of "
            "their decoder norms, as another library trained it; unfolded, top-k families would select other "
            "latents; pass rank_by_norms=True to rank by the norms from now on."
        )


def ranks_alike(stored: Tensor, summed: Tensor) -> bool:
    """Whether two selection weights are equal to 1%, which folding in bfloat16 may change."""
    return torch.allclose(stored.float(), summed.float(), rtol=1e-2, atol=0.0)


def check_k_schedule(kind: str, *, k: int, k_initial: int | None, anneal_fraction: float) -> None:
    """Raise ValueError unless `k` and its annealing are usable numbers."""
    if k < 1 or (k_initial is not None and k_initial < 1):
        raise ValueError(f"{kind}: k and k_initial must be at least 1, got k={k}, k_initial={k_initial}.")
    if not 0.0 < anneal_fraction <= 1.0:
        raise ValueError(f"{kind}: anneal_fraction must be in (0, 1], got {anneal_fraction}.")


def annealed_k(fraction: float, *, k: int, k_initial: int | None, anneal_fraction: float) -> int:
    """`k` at this part of the run: linear from `k_initial` over `anneal_fraction`, then constant."""
    if k_initial is None or fraction >= anneal_fraction:
        return k
    return round(k_initial + (k - k_initial) * fraction / anneal_fraction)
