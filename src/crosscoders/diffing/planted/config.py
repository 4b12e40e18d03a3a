"""How a planted world is drawn: widths, kinds of features, rates and how features depend on each other."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from crosscoders._typing import typed

Kind = Literal["shared", "exclusive", "reused", "rotated", "rescaled"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class PlantedCounts:
    """How many features of each kind a planted world has.

    Args:
        n_shared: Features that every source has, of rates between `PlantedConfig.shared_rates`.
        n_exclusive: Features of one source only, per base rate.
        n_reused: Features per base rate that one source writes into the direction of a shared feature, in
            a context of their own.
        n_rotated: Features per base rate that fire in every source, in unrelated directions.
        n_rescaled: Features per base rate that every source has and all but one have weaker.

    Raises:
        ValueError: A negative count.
    """

    n_shared: int = 288
    n_exclusive: int = 16
    n_reused: int = 16
    n_rotated: int = 16
    n_rescaled: int = 8

    def __post_init__(self) -> None:
        if min(self.n_shared, self.n_exclusive, self.n_reused, self.n_rotated, self.n_rescaled) < 0:
            raise ValueError(f"PlantedCounts: counts must not be negative, got {self}.")

    @typed
    def per_rate(self, kind: Kind) -> int:
        """Features of this kind for each base rate; 0 for shared ones, which have rates of their own.

        Args:
            kind: Kind of the features.

        Returns:
            A count.
        """
        return 0 if kind == "shared" else int(getattr(self, f"n_{kind}"))


@dataclass(frozen=True, kw_only=True)
class PlantedConfig:
    """How synthetic activations with known features are drawn.

    A token's features are on or off; one that is on has an activation uniform in [0.5, 1.5] and adds that
    much of its direction, of length 1 at full strength, to each source that has it. How far features overlap
    in a source follows from the widths, the number of features and `overlap`.

    Args:
        d_models: Width of each source.
        counts: Number of features of each kind.
        rates: Base rates, the share of tokens on which a feature is on, of all kinds but the shared one.
        shared_rates: Lowest and highest rate of shared features, which are log-uniform between them.
        rescale: Strength of a rescaled feature in the sources that do not own it.
        correlation: Share of the variance of the Gaussian copula that the features of a group have in
            common, in [0, 1).
        n_groups: Number of those groups, to which features belong at random.
        hierarchy: Share of the features of rate 0.5% and below that can only be on while another one, of
            rate 2% or more, is on; their own rate stays.
        noise: Norm of Gaussian noise over the mean norm of the activations without it, per source.
        linear_map: Whether shared directions of the other sources are a random isometric image of the
            first one's, so that "rotated" has a meaning; otherwise they are drawn independently.
            The image is another space even where the widths are equal: what compares directions between
            sources as they are finds all shared features rotated.
        overlap: Share in [0, 1) of every direction that lies in a common subspace of few dimensions.

    Raises:
        ValueError: A number out of range, or rotated features without a linear map.
    """

    d_models: tuple[int, ...] = (64, 96)
    counts: PlantedCounts = field(default_factory=PlantedCounts)
    rates: tuple[float, ...] = (0.08, 0.02, 0.005, 0.001)
    shared_rates: tuple[float, float] = (0.001, 0.03)
    rescale: float = 0.5
    correlation: float = 0.1
    n_groups: int = 32
    hierarchy: float = 0.1
    noise: float = 0.05
    linear_map: bool = True
    overlap: float = 0.0

    def __post_init__(self) -> None:
        self._check_sizes()
        low, high = self.shared_rates
        if not all(0 < rate < 1 for rate in (*self.rates, low, high)) or low > high:
            raise ValueError(
                f"PlantedConfig: rates must lie between 0 and 1 and shared_rates ascend, got {self.rates} "
                f"and {self.shared_rates}."
            )
        if not all(0 <= share < 1 for share in (self.correlation, self.overlap)):
            raise ValueError(
                "PlantedConfig: correlation and overlap must lie in [0, 1), got "
                f"{self.correlation} and {self.overlap}."
            )
        if not (0 <= self.hierarchy <= 1 and 0 < self.rescale < 1 and 0 <= self.noise < math.inf):
            raise ValueError(
                "PlantedConfig: hierarchy must lie in [0, 1], rescale in (0, 1) and noise must not be "
                f"negative, got {self.hierarchy}, {self.rescale} and {self.noise}."
            )
        if self.counts.n_rotated and not self.linear_map:
            raise ValueError(
                "PlantedConfig: rotated features differ from shared ones only where a linear map relates "
                "the sources; pass linear_map=True or counts=PlantedCounts(n_rotated=0)."
            )

    def _check_sizes(self) -> None:
        if len(self.d_models) < 2 or min(self.d_models) < 1:
            raise ValueError(
                f"PlantedConfig: expected two or more widths of at least 1, got {self.d_models}."
            )
        if self.n_groups < 1:
            raise ValueError(f"PlantedConfig: n_groups must be at least 1, got {self.n_groups}.")
        if self.n_features == 0:
            raise ValueError("PlantedConfig: no feature of any kind; raise one of the counts.")

    @property
    def n_features(self) -> int:
        """Number of features of all kinds and rates."""
        return self.counts.n_shared + len(self.rates) * sum(self.counts.per_rate(kind) for kind in KINDS)
