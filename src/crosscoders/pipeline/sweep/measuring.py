"""All members of a sweep measured on one pass over the held-out text."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.evaluation import ReconstructionScores, TokenMeans
from crosscoders.harvest import ModelSources
from crosscoders.latents import nonzero_latents
from crosscoders.metrics import ExplainedVariance, dead_fraction, l0
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.corpus import Corpus

_TOKEN_MEAN_ROWS = 512  # rows of training text behind the table of token means


@final
@dataclass(frozen=True, kw_only=True)
class MemberScores:
    """What one member does on the held-out text.

    Args:
        reconstruction: As for a run over all its held-out text, the table of token means included.
        dead_fraction: Share of its latents that fire on no held-out token.
    """

    reconstruction: ReconstructionScores
    dead_fraction: float


@typed
def measure_members(
    crosscoders: Mapping[str, Crosscoder], sources: ModelSources, corpus: Corpus, config: RunConfig
) -> dict[str, MemberScores | str]:
    """Explained variance, L0 and dead latents of several crosscoders; the models read each token once.

    Args:
        crosscoders: By name, in evaluation mode; all over the same columns.
        sources: The models, each with its hook.
        corpus: The held-out text, and the training text behind the table of token means.
        config: Its data section.

    Returns:
        For each name its figures, or a sentence that says why there are none, such as a reconstruction that
        is not finite.
    """
    if not crosscoders:
        return {}
    means = TokenMeans(sources.sources)
    for tokens in corpus.train[:_TOKEN_MEAN_ROWS].split(config.data.sequences_per_harvest):
        keep = corpus.kept(tokens, config.data)
        means.update(tokens[keep], sources.harvest(tokens)[keep])
    scorers = {name: _Scorer(crosscoder) for name, crosscoder in crosscoders.items()}
    baseline = ExplainedVariance(sources.sources)
    for batch in corpus.held_out_batches(sources, config.data):
        baseline.update(batch.rows, means.predict(batch.token_ids).to(batch.rows.device))
        for scorer in scorers.values():
            scorer.update(batch.rows)
    table = {
        "token_means": baseline.compute(),
        "token_means_difference": baseline.compute_difference() if baseline.has_difference else None,
    }
    found: dict[str, MemberScores | str] = {}
    for name, scorer in scorers.items():
        try:
            scores = scorer.scores()
        except ValueError as err:  # sums that are not finite
            found[name] = f"could not be measured: {err}"
            continue
        whole = dataclasses.replace(scores.reconstruction, **table)
        found[name] = dataclasses.replace(scores, reconstruction=whole)
    return found


class _Scorer:
    """Encodes each batch once for all of a member's figures."""

    def __init__(self, crosscoder: Crosscoder) -> None:
        self._crosscoder = crosscoder
        self._variance = ExplainedVariance(crosscoder.sources)
        self._has_fired = torch.zeros(crosscoder.n_latents, dtype=torch.bool)
        self._n_tokens, self._n_active = 0, 0.0

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Add raw activations [batch width]."""
        latents = self._crosscoder.encode(rows)
        self._variance.update(rows, self._crosscoder.decode(latents))
        self._has_fired[nonzero_latents(latents)[1]] = True
        self._n_tokens += rows.shape[0]
        self._n_active += float(l0(latents)) * rows.shape[0]

    def scores(self) -> MemberScores:
        """The figures, without those of a baseline."""
        variance = self._variance
        return MemberScores(
            reconstruction=ReconstructionScores(
                n_tokens=self._n_tokens,
                l0=self._n_active / self._n_tokens if self._n_tokens else float("nan"),
                explained_variance=variance.compute(),
                difference=variance.compute_difference() if variance.has_difference else None,
            ),
            dead_fraction=float(dead_fraction(~self._has_fired)),
        )
