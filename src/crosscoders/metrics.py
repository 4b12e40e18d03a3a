"""Every measure has its one definition here; sums are accumulated in float64."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscoders._typing import SupportsSparseLatents, typed
from crosscoders.sources import Source, column_slices, width

__all__ = [
    "ExplainedVariance",
    "auroc",
    "cross_entropy",
    "dead_fraction",
    "decoder_cosine",
    "decoder_norm_share",
    "decoder_norms",
    "kl_divergence",
    "l0",
    "loss_recovered",
    "normalized_decoder_ratio",
]


@typed
def decoder_norms(
    W_dec: Float[Tensor, "latent width"], sources: Sequence[Source], *, p: int = 2
) -> Float[Tensor, "latent source"]:
    """Norm of each latent's decoder vector in each source.

    Args:
        W_dec: Decoder rows.
        sources: Sources in the order of their columns.
        p: 2 for the Euclidean norm (the field's choice), 1 for the sum of magnitudes (Baek & Tegmark 2025).

    Returns:
        One norm per latent and source, in the dtype of `W_dec`.

    Raises:
        ValueError: `p` is neither 1 nor 2, or the columns do not match the sources.
    """
    if p not in (1, 2):
        raise ValueError(f"decoder_norms: p must be 1 or 2, got {p}.")
    _check_width("decoder_norms", W_dec, sources)
    columns = column_slices(sources).values()
    return torch.stack([torch.linalg.vector_norm(W_dec[:, s], ord=p, dim=1) for s in columns], dim=1)


@typed
def decoder_norm_share(norms: Float[Tensor, "latent source"]) -> Float[Tensor, "latent source"]:
    """Share of each source in a latent's summed decoder norm; 0/0 gives NaN.

    Args:
        norms: Result of `decoder_norms`.

    Returns:
        Rows that add up to one.
    """
    return norms / norms.sum(dim=1, keepdim=True)


@typed
def normalized_decoder_ratio(norms: Float[Tensor, "latent source"]) -> Float[Tensor, " latent"]:
    """NRN: 0 = the latent writes to the first source only, 0.5 = equally to both, 1 = to the second only.

    Formula: |d_B| / (|d_A| + |d_B|) (Baek & Tegmark 2025). A latent whose decoder is zero in both sources
    has no ratio: it is NaN, not 0.5.

    Args:
        norms: Result of `decoder_norms` for exactly two sources.

    Returns:
        One ratio per latent.

    Raises:
        ValueError: The number of sources is not two.
    """
    if norms.shape[1] != 2:
        raise ValueError(
            f"normalized_decoder_ratio: defined for 2 sources, got {norms.shape[1]}; use decoder_norm_share."
        )
    return norms[:, 1] / norms.sum(dim=1)


@typed
def decoder_cosine(
    W_dec: Float[Tensor, "latent width"], sources: Sequence[Source]
) -> Float[Tensor, " latent"]:
    """Cosine between a latent's decoder vectors in two sources; NaN where one of them is zero.

    Args:
        W_dec: Decoder rows.
        sources: Exactly two sources of equal width.

    Returns:
        One cosine per latent.

    Raises:
        ValueError: Not two sources, or their widths differ.
    """
    _check_width("decoder_cosine", W_dec, sources)
    first, second = _two_equal_slices("decoder_cosine", sources)
    a, b = W_dec[:, first], W_dec[:, second]
    norms = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return (a * b).sum(dim=1) / norms


@typed
def l0(latents: Float[Tensor, "batch latent"] | SupportsSparseLatents) -> Float[Tensor, ""]:
    """Mean number of non-zero latents per token.

    Args:
        latents: Dense or sparse latents.

    Returns:
        A float64 scalar.
    """
    if isinstance(latents, Tensor):
        return torch.count_nonzero(latents).double() / latents.shape[0]
    return torch.count_nonzero(latents.values).double() / latents.n_rows


@typed
def dead_fraction(dead_mask: Bool[Tensor, " latent"]) -> Float[Tensor, ""]:
    """Share of latents that are dead.

    Args:
        dead_mask: True where a latent did not fire in the tokens looked at.

    Returns:
        A float64 scalar.
    """
    return dead_mask.double().mean()


class ExplainedVariance:
    """Explained variance per source, streamed: one pass, any chunking, the same result.

    EV = 1 - sum_i |x_i - xhat_i|^2 / sum_i |x_i - mean|^2, both sums over all rows seen and over the columns
    of one source, the ratio taken once. The mean predictor has EV 0, the target itself 1, and a worse
    predictor is negative: nothing is clamped. Feed raw activations for `compute_difference`: the difference
    of two sources means something only before each is scaled by its own factor.

    Args:
        sources: Sources in the order of their columns.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = tuple(sources)
        self._columns = _Moments()
        self._difference = _Moments() if _are_two_equal(self.sources) else None

    @typed
    def update(
        self, target: Float[Tensor, "batch width"], reconstruction: Float[Tensor, "batch width"]
    ) -> None:
        """Add a chunk of rows.

        Args:
            target: Activations.
            reconstruction: Their reconstruction, in the same space.

        Raises:
            ValueError: The columns do not match the sources.
        """
        _check_width("ExplainedVariance.update", target, self.sources)
        x, error = target.detach().double(), (target.detach().double() - reconstruction.detach().double())
        self._columns.add(x, error)
        if self._difference is not None:
            first, second = column_slices(self.sources).values()
            self._difference.add(x[:, second] - x[:, first], error[:, second] - error[:, first])

    @typed
    def pooled(self, total: Callable[[Tensor], Tensor]) -> "ExplainedVariance":
        """The same measure over the rows that several processes have seen.

        Args:
            total: Sums a float64 tensor over the processes, which all call it together.

        Returns:
            A measure that each process may compute alone.
        """
        pooled = ExplainedVariance(self.sources)
        pooled._columns = self._columns.pooled(total, n_columns=width(self.sources))
        if self._difference is not None:
            pooled._difference = self._difference.pooled(total, n_columns=self.sources[0].d_model)
        return pooled

    @typed
    def compute(self) -> dict[str, float]:
        """EV of each source over all rows seen.

        Returns:
            One value per source name.

        Raises:
            ValueError: Fewer than two rows, a source without variance, or non-finite sums.
        """
        return {
            name: self._columns.explained(f"source {name!r}", columns)
            for name, columns in column_slices(self.sources).items()
        }

    @property
    def has_difference(self) -> bool:
        """Whether there are two sources of equal width whose difference varies."""
        moments = self._difference
        return moments is not None and moments.centered is not None and bool(moments.centered.sum() > 0)

    @typed
    def compute_difference(self) -> float:
        """EV of the difference x_B - x_A of two sources of equal width.

        Returns:
            1 - sum |e_B - e_A|^2 / sum |(x_B - x_A) - mean|^2.

        Raises:
            ValueError: Not two sources of equal width, fewer than two rows, no variance, or non-finite sums.
        """
        if self._difference is None:
            _two_equal_slices("ExplainedVariance.compute_difference", self.sources)
        assert self._difference is not None
        return self._difference.explained("the difference of the sources", slice(None))


class _Moments:
    """Row count, column means, centered square sums (Chan et al. merging) and squared-error sums."""

    def __init__(self) -> None:
        self.n_rows = 0
        self.mean: Tensor | None = None
        self.centered: Tensor | None = None
        self.error: Tensor | None = None

    def add(self, x: Tensor, error: Tensor) -> None:
        n = x.shape[0]
        if n == 0:
            return
        mean = x.mean(dim=0)
        centered = (x - mean).square().sum(dim=0)
        squared_error = error.square().sum(dim=0)
        if self.mean is None or self.centered is None or self.error is None:
            self.n_rows, self.mean, self.centered, self.error = n, mean, centered, squared_error
            return
        total = self.n_rows + n
        shift = mean - self.mean
        self.centered = self.centered + centered + shift.square() * (self.n_rows * n / total)
        self.mean = self.mean + shift * (n / total)
        self.error = self.error + squared_error
        self.n_rows = total

    def pooled(self, total: Callable[[Tensor], Tensor], *, n_columns: int) -> "_Moments":
        nothing = torch.zeros(n_columns, dtype=torch.float64)
        mean, centered, error = (
            nothing if part is None else part for part in (self.mean, self.centered, self.error)
        )
        pooled = _Moments()
        sums = total(torch.cat([mean * self.n_rows, error, mean.new_tensor([self.n_rows])]))
        pooled.n_rows = int(sums[-1])
        pooled.mean, pooled.error = sums[:n_columns] / pooled.n_rows, sums[n_columns:-1]
        pooled.centered = total(centered + self.n_rows * (mean.to(sums.device) - pooled.mean).square())
        return pooled

    def explained(self, what: str, columns: slice) -> float:
        if self.centered is None or self.error is None or self.n_rows < 2:
            raise ValueError(f"ExplainedVariance: needs at least 2 rows, got {self.n_rows}.")
        variance, error = self.centered[columns].sum().item(), self.error[columns].sum().item()
        if not (math.isfinite(variance) and math.isfinite(error)):
            raise ValueError(
                f"ExplainedVariance: {what} has non-finite sums over {self.n_rows} rows "
                f"(variance {variance}, squared error {error}); the activations hold NaN or infinity."
            )
        if variance == 0.0:
            raise ValueError(
                f"ExplainedVariance: {what} does not vary over {self.n_rows} rows, so EV is undefined."
            )
        return 1.0 - error / variance


@typed
def auroc(scores: Float[Tensor, " batch"], labels: Bool[Tensor, " batch"]) -> float:
    """Probability that a positive scores higher than a negative; a tie counts one half.

    Args:
        scores: Any real scores.
        labels: True for positives.

    Returns:
        Area under the ROC curve (Mann-Whitney U over the number of pairs).

    Raises:
        ValueError: Only one class is present, or a score is NaN.
    """
    n_positive = int(labels.sum())
    n_negative = labels.numel() - n_positive
    if n_positive == 0 or n_negative == 0:
        raise ValueError(
            f"auroc: needs both classes, got {n_positive} positives and {n_negative} negatives "
            f"of {labels.numel()}."
        )
    if bool(scores.isnan().any()):
        raise ValueError(f"auroc: {int(scores.isnan().sum())} of {scores.numel()} scores are NaN.")
    _, level, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    counts = counts.double()
    mean_rank = counts.cumsum(0) - (counts - 1) / 2
    rank_sum = mean_rank[level][labels].sum().item()
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


@typed
def kl_divergence(
    p_logits: Float[Tensor, "*batch vocab"], q_logits: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """KL(p || q) in nats for each token.

    Args:
        p_logits: Logits of the reference, such as the clean model.
        q_logits: Logits of the other, such as the model with the reconstruction spliced in.

    Returns:
        One float64 value per token; log-softmax in float32 or better.
    """
    log_p = torch.log_softmax(_at_least_float32(p_logits), dim=-1)
    log_q = torch.log_softmax(_at_least_float32(q_logits), dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1, dtype=torch.float64)


@typed
def cross_entropy(
    logits: Float[Tensor, "*batch vocab"], targets: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Negative log-probability in nats of each target; the caller aligns logits with the next token.

    Args:
        logits: Logits.
        targets: Token id to score at each place.

    Returns:
        One value per token, in float32 or better.
    """
    log_p = torch.log_softmax(_at_least_float32(logits), dim=-1)
    return -log_p.gather(-1, targets.unsqueeze(-1).long()).squeeze(-1)


@typed
def loss_recovered(*, ce_clean: float, ce_spliced: float, ce_ablated: float) -> float:
    """Share of the loss caused by ablating the hook that the spliced reconstruction recovers.

    Formula: (ce_ablated - ce_spliced) / (ce_ablated - ce_clean); 1 is lossless, 0 no better than ablation.

    Args:
        ce_clean: Mean cross-entropy of the untouched model.
        ce_spliced: Mean cross-entropy with the reconstruction in place of the activation.
        ce_ablated: Mean cross-entropy with the activation ablated.

    Returns:
        The share, not clamped.

    Raises:
        ValueError: Ablation does not change the loss, so there is nothing to recover.
    """
    if ce_ablated == ce_clean:
        raise ValueError(
            f"loss_recovered: ablation leaves the cross-entropy at {ce_clean}; the share is undefined."
        )
    return (ce_ablated - ce_spliced) / (ce_ablated - ce_clean)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _check_width(where: str, matrix: Tensor, sources: Sequence[Source]) -> None:
    if matrix.shape[1] != width(sources):
        widths = ", ".join(f"{source.name}: {source.d_model}" for source in sources)
        raise ValueError(
            f"{where}: got {matrix.shape[1]} columns, but the sources have {width(sources)} ({widths})."
        )


def _are_two_equal(sources: Sequence[Source]) -> bool:
    return len(sources) == 2 and sources[0].d_model == sources[1].d_model


def _two_equal_slices(where: str, sources: Sequence[Source]) -> tuple[slice, slice]:
    if not _are_two_equal(sources):
        widths = {source.name: source.d_model for source in sources}
        raise ValueError(f"{where}: defined for two sources of equal width, got {widths}.")
    first, second = column_slices(sources).values()
    return first, second
