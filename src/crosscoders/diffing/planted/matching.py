"""Which latent, if any, stands for each planted feature: activation correlation on held-out tokens."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscoders._typing import SupportsSparseLatents, typed

# From here on a latent shares half of the feature's variance, more than anything else can explain in it.
RECOVERED_CORRELATION = 0.7
_CONSTANT = 1e-12  # variance over second moment below which float64 sums cannot tell it from zero


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureMatch:
    """The latent nearest to each planted feature, and the feature nearest to each latent.

    Args:
        latent: Latent of the highest correlation with each feature; -1 where none is defined, because the
            feature never fired.
        correlation: That correlation; NaN where it is undefined.
        feature: Feature of the highest correlation with each latent; -1 for a latent that never fired.
        feature_correlation: That correlation; NaN where it is undefined.
        frequency: Share of tokens on which each latent fired.
        firings: Number of tokens on which each feature was on.
        n_tokens: Number of tokens.
    """

    latent: Int[Tensor, " _feature"]
    correlation: Float[Tensor, " _feature"]
    feature: Int[Tensor, " latent"]
    feature_correlation: Float[Tensor, " latent"]
    frequency: Float[Tensor, " latent"]
    firings: Int[Tensor, " _feature"]
    n_tokens: int

    @property
    def is_recovered(self) -> Bool[Tensor, " _feature"]:
        """Whether a latent follows the feature (correlation of 0.7 or more) and no other feature better."""
        own = torch.arange(len(self.latent), device=self.latent.device)
        is_mutual = (self.latent >= 0) & (self.feature[self.latent] == own)
        return is_mutual & (self.correlation >= RECOVERED_CORRELATION)

    @property
    def has_feature(self) -> Bool[Tensor, " latent"]:
        """Whether the latent follows some feature, as the best latent for it or beside a better one."""
        return self.feature_correlation >= RECOVERED_CORRELATION


@typed
def match_features(
    batches: Iterable[tuple[Float[Tensor, "batch _feature"], Tensor | SupportsSparseLatents]],
) -> FeatureMatch:
    """Match planted features to latents by the Pearson correlation of their activations over all tokens.

    Sums are accumulated in float64, one `[feature, latent]` matrix of them.

    Args:
        batches: Activations of the planted features and the latents of the same held-out tokens, dense
            `[batch, latent]` or sparse.

    Returns:
        The match.

    Raises:
        ValueError: No batch, or features and latents of different tokens.
    """
    sums: _Sums | None = None
    for activations, latents in batches:
        n_latents = latents.shape[1] if isinstance(latents, Tensor) else latents.n_latents
        n_rows = latents.shape[0] if isinstance(latents, Tensor) else latents.n_rows
        if n_rows != len(activations):
            raise ValueError(
                f"match_features: expected the latents of the same {len(activations)} tokens, got {n_rows}."
            )
        sums = sums or _Sums(activations.shape[1], n_latents)
        sums.add(activations, latents)
    if sums is None or sums.n_tokens == 0:
        raise ValueError("match_features: no token came; pass batches of features and latents.")
    return sums.match()


@final
class _Sums:
    """First and second moments of features, latents and their products."""

    def __init__(self, n_features: int, n_latents: int) -> None:
        self.n_tokens = 0
        self._feature = torch.zeros(2, n_features, dtype=torch.float64)
        self._latent = torch.zeros(2, n_latents, dtype=torch.float64)
        self._firings = torch.zeros(n_features, dtype=torch.int64)
        self._fired = torch.zeros(n_latents, dtype=torch.float64)
        self._cross = torch.zeros(n_features, n_latents, dtype=torch.float64)

    def add(self, activations: Tensor, latents: Tensor | SupportsSparseLatents) -> None:
        self.n_tokens += len(activations)
        truth = activations.detach().cpu().double()
        self._feature += torch.stack([truth.sum(0), truth.square().sum(0)])
        self._firings += (truth != 0).sum(0)
        index, values, codes = _transposed(latents)
        for total, part in zip(
            (*self._latent, self._fired), (values, values.square(), (values != 0).double())
        ):
            total.index_add_(0, index, part)
        self._cross += (codes @ truth).T

    def match(self) -> FeatureMatch:
        n = self.n_tokens
        covariance = n * self._cross - self._feature[0, :, None] * self._latent[0]
        spread = _spread(self._feature, n)[:, None] * _spread(self._latent, n)
        correlation = covariance / spread
        is_defined = spread > 0
        ranked = torch.where(is_defined, correlation, -torch.inf)
        return FeatureMatch(
            latent=torch.where(is_defined.any(1), ranked.argmax(1), -1),
            correlation=torch.where(is_defined.any(1), ranked.amax(1), torch.nan),
            feature=torch.where(is_defined.any(0), ranked.argmax(0), -1),
            feature_correlation=torch.where(is_defined.any(0), ranked.amax(0), torch.nan),
            frequency=self._fired / n,
            firings=self._firings,
            n_tokens=n,
        )


def _transposed(latents: Tensor | SupportsSparseLatents) -> tuple[Tensor, Tensor, Tensor]:
    """Latent and value of each stored entry, and the sparse `[latent, batch]` matrix, in float64."""
    if isinstance(latents, Tensor):
        row, index = latents.detach().cpu().nonzero().unbind(1)
        values, shape = latents.detach().cpu()[row, index], (latents.shape[1], latents.shape[0])
    else:
        lengths, index = latents.row_ptr.diff().cpu(), latents.indices.cpu()
        row, values = torch.arange(len(lengths)).repeat_interleave(lengths), latents.values.detach().cpu()
        shape = (latents.n_latents, latents.n_rows)
    values = values.double()
    entries = torch.stack([index, row])
    return index, values, torch.sparse_coo_tensor(entries, values, shape, check_invariants=True)


def _spread(moments: Tensor, n: int) -> Tensor:
    """`n` times the standard deviation; exactly 0 for what never changes."""
    second = n * moments[1]
    variance = second - moments[0].square()
    return torch.where(variance > _CONSTANT * second, variance, 0.0).sqrt()
