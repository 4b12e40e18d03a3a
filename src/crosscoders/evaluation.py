"""Held-out evaluation: explained variance per source and of the difference, sparsity, and a baseline."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.metrics import ExplainedVariance, l0
from crosscoders.sources import Source, width


class TokenMeans:
    """A table of mean activations per token id: what one can say of them without looking at the context.

    A crosscoder that explains no more than this table has learned the tokens, not the models.

    Args:
        sources: Sources in the order of their columns.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._width = width(sources)
        self._sums = torch.zeros(0, self._width, dtype=torch.float64)
        self._counts = torch.zeros(0, dtype=torch.int64)

    @typed
    def update(self, token_ids: Int[Tensor, " batch"], rows: Float[Tensor, "batch width"]) -> None:
        """Add tokens to the table.

        Args:
            token_ids: The token at each row.
            rows: Raw activations.
        """
        missing = int(token_ids.max()) + 1 - len(self._counts)
        if missing > 0:
            self._sums = torch.cat([self._sums, torch.zeros(missing, self._width, dtype=torch.float64)])
            self._counts = torch.cat([self._counts, torch.zeros(missing, dtype=torch.int64)])
        self._sums.index_add_(0, token_ids, rows.double().cpu())
        self._counts += torch.bincount(token_ids, minlength=len(self._counts))

    @typed
    def predict(self, token_ids: Int[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        """Mean activation of each token; a token that the table never saw gets the mean of all tokens.

        Args:
            token_ids: The token at each row.

        Returns:
            Raw activations in float32, on the CPU.

        Raises:
            ValueError: The table is empty.
        """
        if int(self._counts.sum()) == 0:
            raise ValueError(
                "TokenMeans.predict: the table is empty; call update with tokens of the training text first."
            )
        overall = self._sums.sum(dim=0) / self._counts.sum()
        known = token_ids.clamp(max=len(self._counts) - 1)
        seen = (token_ids < len(self._counts)) & (self._counts[known] > 0)
        means = self._sums[known] / self._counts[known].clamp(min=1)[:, None]
        return torch.where(seen[:, None], means, overall).float()


@dataclass(frozen=True, kw_only=True)
class ReconstructionScores:
    """How well held-out activations are reconstructed (raw space).

    Explained variance is that of `crosscoders.metrics.ExplainedVariance`: 1 - residual / variance about the
    held-out mean, ratio of sums.

    Args:
        n_tokens: Tokens measured.
        l0: Mean number of latents that fire on a token; NaN without tokens.
        explained_variance: By source name.
        difference: Explained variance of second minus first source; None unless two of equal width differ.
        token_means: `explained_variance` of the table of token means; None without a table.
        token_means_difference: `difference` of the table of token means; None without a table.
    """

    n_tokens: int
    l0: float
    explained_variance: dict[str, float]
    difference: float | None
    token_means: dict[str, float] | None = None
    token_means_difference: float | None = None


class ReconstructionScorer:
    """Streams `ReconstructionScores` over batches of tokens.

    Args:
        crosscoder: Used in evaluation mode; the caller puts it there.
        token_means: Baseline table, or None.
    """

    def __init__(self, crosscoder: Crosscoder, token_means: TokenMeans | None = None) -> None:
        self._crosscoder = crosscoder
        self._token_means = token_means
        self._model = ExplainedVariance(crosscoder.sources)
        self._baseline = ExplainedVariance(crosscoder.sources)
        self.n_tokens, self._n_active = 0, 0.0

    @typed
    @torch.no_grad()
    def update(
        self, rows: Float[Tensor, "batch width"], token_ids: Int[Tensor, " batch"] | None = None
    ) -> None:
        """Add some tokens.

        Args:
            rows: Raw activations.
            token_ids: The token at each row; needed if there is a baseline table.
        """
        latents = self._crosscoder.encode(rows)
        self._model.update(rows, self._crosscoder.decode(latents))
        if self._token_means is not None and token_ids is not None:
            self._baseline.update(rows, self._token_means.predict(token_ids).to(rows.device))
        self.n_tokens += rows.shape[0]
        self._n_active += float(l0(latents)) * rows.shape[0]

    @typed
    def scores(self) -> ReconstructionScores:
        """Figures over everything seen.

        Returns:
            The figures; those of the baseline only where there is a table.

        Raises:
            ValueError: Fewer than two tokens, or activations without variance.
        """
        has_difference = self._model.has_difference
        has_baseline = self._token_means is not None
        return ReconstructionScores(
            n_tokens=self.n_tokens,
            l0=self._n_active / self.n_tokens if self.n_tokens else float("nan"),
            explained_variance=self._model.compute(),
            difference=self._model.compute_difference() if has_difference else None,
            token_means=self._baseline.compute() if has_baseline else None,
            token_means_difference=self._baseline.compute_difference()
            if has_baseline and has_difference
            else None,
        )


@typed
def evaluate(crosscoder: Crosscoder, batches: Iterable[Float[Tensor, "_ width"]]) -> dict[str, float]:
    """Explained variance per source and of the difference, and L0, as flat figures for logging.

    Leaves the crosscoder in the mode it had.

    Args:
        crosscoder: Any crosscoder.
        batches: Held-out raw activations, in batches of any sizes.

    Returns:
        Keys "ev/<source>", "l0", and "ev/difference" for two sources of equal width.

    Raises:
        ValueError: Fewer than two tokens, or activations without variance.
    """
    was_training = crosscoder.training
    crosscoder.eval()
    try:
        scorer = ReconstructionScorer(crosscoder)
        for rows in batches:
            scorer.update(rows)
    finally:
        crosscoder.train(was_training)
    scores = scorer.scores()
    figures = {f"ev/{name}": value for name, value in scores.explained_variance.items()}
    figures |= {"l0": scores.l0}
    return figures | ({} if scores.difference is None else {"ev/difference": scores.difference})
