"""RelIE: the share of the second model in what a latent does to a metric."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.bootstrap import bootstrap_counts
from crosscoders.diffing.attribution.targets import Attribution
from crosscoders.sources import compared_pair, source_index

_ESTIMATES_AT_ONCE = 2**22  # resamples x latents whose means are held at once: 32 MB


@dataclass(frozen=True, kw_only=True)
class RelIE:
    """Relative indirect effect of each latent, with what it is made of.

    Args:
        pair: Names of the first and the second source.
        confidence: Coverage aimed at by every interval.
        effect: Signed mean effect through the first and the second source's stream.
        effect_low: Lower end of its interval; NaN for both with fewer than two rows of text.
        effect_high: Upper end.
        value: |effect second| / (|effect first| + |effect second|); NaN where `is_blank`.
        low: Lower end of its interval; NaN where `is_blank`.
        high: Upper end.
    """

    pair: tuple[str, str]
    confidence: float
    effect: Float[Tensor, "chosen source"]
    effect_low: Float[Tensor, "chosen source"]
    effect_high: Float[Tensor, "chosen source"]
    value: Float[Tensor, " chosen"]
    low: Float[Tensor, " chosen"]
    high: Float[Tensor, " chosen"]

    @property
    def is_blank(self) -> Bool[Tensor, " chosen"]:
        """Whether the intervals of both effects include zero, so that their ratio is one of noise."""
        return ~((self.effect_low > 0) | (self.effect_high < 0)).any(dim=1)


@typed
def relie(
    attribution: Attribution,
    *,
    generator: torch.Generator,
    pair: tuple[str, str] | None = None,
    n_resamples: int = 1000,
    confidence: float = 0.95,
) -> RelIE:
    """Share of the second source in the effects of each latent (Bayazit et al. 2026, arXiv 2509.05291).

    RelIE_j = |IE_j^second| / (|IE_j^first| + |IE_j^second|): 0 = the latent acts in the first model only,
    0.5 = in both alike, 1 = in the second only. IE_j is the *signed* mean effect over the targets: a mean of
    magnitudes gives noise without direction an effect, and every latent that does nothing a share near 0.5.
    Where noise dominates the value is blank (NaN): where the intervals of both effects include zero.

    Intervals are percentiles of a bootstrap that draws whole rows of text, the same rows for all latents and
    both sources (Efron & Tibshirani 1993). They tell noise over texts, not over trainings.

    Args:
        attribution: Effects per target, latent and source; each source's are of its own model's metric.
        generator: Source of randomness, on the CPU.
        pair: The two sources compared; None for the first and the last.
        n_resamples: Bootstrap samples.
        confidence: Coverage aimed at, above 0 and below 1.

    Returns:
        Value and effects of each latent, with intervals.

    Raises:
        ValueError: A source that does not exist, twice the same one, or a number out of range.
    """
    compared = compared_pair(attribution.sources, pair, where="relie")
    columns = [source_index(attribution.sources, source.name) for source in compared]
    if not 0 < confidence < 1:
        raise ValueError(f"relie: confidence must lie between 0 and 1, got {confidence}.")
    effects = attribution.effects[:, :, columns]
    clusters, cluster = attribution.rows.unique(return_inverse=True)
    counts = bootstrap_counts(len(clusters), n_bootstrap=n_resamples, generator=generator)
    n_targets = counts @ torch.bincount(cluster, minlength=len(clusters)).double()
    sums = effects.new_zeros(len(clusters), *effects.shape[1:]).index_add_(0, cluster, effects)
    step = max(1, _ESTIMATES_AT_ONCE // (2 * n_resamples))
    parts = [_intervals(part, counts, n_targets, confidence=confidence) for part in sums.split(step, dim=1)]
    ends = torch.cat(parts, dim=1)
    if len(clusters) < 2:
        ends = torch.full_like(ends, torch.nan)
    names = (compared[0].name, compared[1].name)
    return _blanked(names, confidence, effects.mean(dim=0), ends)


def _intervals(sums: Tensor, counts: Tensor, n_targets: Tensor, *, confidence: float) -> Tensor:
    """Both ends [2 chosen 3] of the intervals of the two effects and of their share."""
    means = torch.tensordot(counts, sums, dims=1) / n_targets[:, None, None]
    tail = (1 - confidence) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    of_effects = torch.quantile(means, ends, dim=0)
    of_share = torch.nanquantile(_share(means), ends, dim=0)  # a resample may draw no row where it fires
    return torch.cat([of_effects, of_share[:, :, None]], dim=2)


def _share(effects: Tensor) -> Tensor:
    size = effects.abs()
    return size[..., 1] / size.sum(dim=-1)


def _blanked(names: tuple[str, str], confidence: float, effect: Tensor, ends: Tensor) -> RelIE:
    low, high = ends
    is_blank = ~((low[:, :2] > 0) | (high[:, :2] < 0)).any(dim=1)
    value, share_low, share_high = (
        figure.masked_fill(is_blank, torch.nan) for figure in (_share(effect), low[:, 2], high[:, 2])
    )
    return RelIE(
        pair=names,
        confidence=confidence,
        effect=effect,
        effect_low=low[:, :2],
        effect_high=high[:, :2],
        value=value,
        low=share_low,
        high=share_high,
    )
