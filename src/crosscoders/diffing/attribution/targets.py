"""What latents add to the logit of the token that comes next, in every source's model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.diffing.attribution.stream_gradient import Method
from crosscoders.diffing.attribution.tokens import TokenAttribution, attribute_tokens
from crosscoders.harvest import ModelSources
from crosscoders.interventions.ablation.occurrences import OccurrenceBatch, Occurrences, occurrence_batches
from crosscoders.sources import Source, source_index

# Logits where a target is read [batch vocab] and the target ids [batch] -> one number per target [batch].
TargetMetric = Callable[[Tensor, Tensor], Tensor]


@typed
def target_logit(
    logits: Float[Tensor, "batch vocab"], targets: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """The target's logit, in float64.

    A logit alone has no zero: a shift of all logits changes no probability. See `centered_logit`.

    Args:
        logits: Logits where the targets are read.
        targets: Target token of each row.
    """
    return _of_targets(logits.double(), targets)


@typed
def centered_logit(
    logits: Float[Tensor, "batch vocab"], targets: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """The target's logit minus the mean logit of the vocabulary, in float64.

    Args:
        logits: Logits where the targets are read.
        targets: Target token of each row.
    """
    return _of_targets(logits.double(), targets) - logits.double().mean(dim=1)


@typed
def target_log_probability(
    logits: Float[Tensor, "batch vocab"], targets: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """The target's log-probability in nats, in float64.

    Args:
        logits: Logits where the targets are read.
        targets: Target token of each row.
    """
    return _of_targets(logits.double().log_softmax(dim=1), targets)


@typed
def logit_difference(against: int) -> TargetMetric:
    """A metric: the target's logit minus that of another token, which is their log-odds.

    Args:
        against: Id of the other token.

    Returns:
        The metric, for `attribute`.

    Raises:
        ValueError: The id is negative.
    """
    if against < 0:
        raise ValueError(f"logit_difference: a token id is at least 0, got {against}.")

    def difference(logits: Tensor, targets: Tensor) -> Tensor:
        return _of_targets(logits.double(), targets) - logits[:, against].double()

    return difference


def _of_targets(scores: Tensor, targets: Tensor) -> Tensor:
    return scores.gather(1, targets.to(scores.device)[:, None])[:, 0]


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """Effect of each latent on each target, summed over the tokens before it; in the unit of the metric.

    Args:
        sources: The crosscoder's sources, in the order of the last axis.
        latents: The set that was attributed to.
        rows: Row of text of each target; targets of one row are not independent.
        effects: Signed effect of each latent through each source's stream, on that source's own metric.
        metric: Each source's metric of each target, clean.
        removed: What it loses where the whole set is taken out of the stream.
    """

    sources: tuple[Source, ...]
    latents: Int[Tensor, " chosen"]
    rows: Int[Tensor, " held_out"]
    effects: Float[Tensor, "held_out chosen source"]
    metric: Float[Tensor, "held_out source"]
    removed: Float[Tensor, "held_out source"]

    @property
    def mean(self) -> Float[Tensor, "chosen source"]:
        """Signed mean effect over the targets."""
        return self.effects.mean(dim=0)

    @property
    def gap(self) -> Float[Tensor, "held_out source"]:
        """Summed effects minus `removed`: what the first order or too few steps miss."""
        return self.effects.sum(dim=1) - self.removed

    @typed
    def top(self, source: str, *, n: int = 10) -> Int[Tensor, " _"]:
        """Latents of the largest mean effect through a source's stream, either sign, largest first.

        Args:
            source: Name of the source.
            n: How many; fewer if the set is smaller.

        Returns:
            Latent numbers.

        Raises:
            ValueError: No such source.
        """
        size = self.mean[:, source_index(self.sources, source)].abs()
        return self.latents[torch.argsort(size, descending=True, stable=True)[:n]]


@typed
def attribute(
    crosscoder: Crosscoder,
    sources: ModelSources,
    tokens: Int[Tensor, "held_out pos"],
    occurrences: Occurrences,
    *,
    metric: TargetMetric | None = None,
    latents: Int[Tensor, " chosen"] | None = None,
    method: Method = "integrated",
    n_steps: int = 10,
    where: Bool[Tensor, "held_out pos"] | None = None,
    batch_size: int = 16,
) -> Attribution:
    """Attribute what each source's model says of target tokens to latents, one position before the target.

    For the formula and the two methods see `attribute_tokens`; here the effects of a latent are summed over
    all tokens before the target. A source costs two forwards, and one forward and backward per step, whatever
    the number of latents; the result takes 8 bytes per target, latent and source.

    Args:
        crosscoder: Read in evaluation mode; left in the mode it had.
        sources: The whole models, in the order of the crosscoder's sources.
        tokens: The text; only rows with occurrences run, cut before the target.
        occurrences: Targets in it (`choose_occurrences`).
        metric: Gets the logits where targets are read [batch vocab] and the target ids [batch], and returns
            one number per target: `target_logit`, `centered_logit`, `target_log_probability`,
            `logit_difference(against)`, or any differentiable function of these logits, row by row.
        latents: The set that comes back together; None for all latents. One latent alone gets its own
            ablation effect ("integrated").
        method: "gradient", the first-order estimate, or "integrated".
        n_steps: Steps of "integrated"; `gap` says whether they are enough.
        where: Positions whose latents count; leave special tokens out. None is everywhere.
        batch_size: Targets that go through the models together.

    Returns:
        Signed effects per target, latent and source.

    Raises:
        ValueError: No occurrences, sources other than the crosscoder's, a latent that does not exist, a
            truncated model, or a metric that is not one finite number per row.

    Example:
        chosen = choose_occurrences(tokens == wait, n=100, generator=torch.Generator().manual_seed(0))
        found = attribute(crosscoder, sources, tokens, chosen)
        print(found.top("distilled"))
    """
    if len(occurrences) == 0:
        raise ValueError("attribute: got no occurrences; see choose_occurrences.")
    chosen = torch.arange(crosscoder.n_latents) if latents is None else latents.cpu()
    found = _zeros(crosscoder.sources, occurrences, chosen)
    options: dict[str, Any] = {"latents": latents, "method": method, "n_steps": n_steps}
    for batch in occurrence_batches(tokens, occurrences, batch_size=batch_size):
        read, before = _at_targets(metric or centered_logit, batch), _before_targets(batch, where)
        part = attribute_tokens(crosscoder, sources, batch.tokens, metric=read, where=before, **options)
        found.effects[batch.which] = _summed_over_tokens(part, chosen, n_latents=crosscoder.n_latents)
        found.metric[batch.which], found.removed[batch.which] = part.metric, part.removed
    return found


def _zeros(sources: tuple[Source, ...], occurrences: Occurrences, chosen: Tensor) -> Attribution:
    """To be filled, batch by batch."""
    n, n_sources = len(occurrences), len(sources)
    return Attribution(
        sources=sources,
        latents=chosen,
        rows=occurrences.rows,
        effects=torch.zeros(n, len(chosen), n_sources, dtype=torch.float64),
        metric=torch.zeros(n, n_sources, dtype=torch.float64),
        removed=torch.zeros(n, n_sources, dtype=torch.float64),
    )


def _at_targets(metric: TargetMetric, batch: OccurrenceBatch) -> Callable[[Tensor], Tensor]:
    """The metric as a function of all logits [batch pos vocab]."""

    def read(logits: Tensor) -> Tensor:
        rows = torch.arange(len(batch.read), device=logits.device)
        return metric(logits[rows, batch.read.to(logits.device)], batch.targets)

    return read


def _before_targets(batch: OccurrenceBatch, where: Tensor | None) -> Tensor:
    """Positions up to the one that is read; later ones cannot matter to a causal model."""
    before = torch.arange(batch.tokens.shape[1]) <= batch.read[:, None]
    return before if where is None else before & where[batch.rows, : batch.tokens.shape[1]]


def _summed_over_tokens(found: TokenAttribution, chosen: Tensor, *, n_latents: int) -> Tensor:
    """[target chosen source]."""
    column = torch.full((n_latents,), -1)
    column[chosen] = torch.arange(len(chosen))
    n_rows, n_sources = found.metric.shape
    flat = found.rows * len(chosen) + column[found.latents]
    summed = torch.zeros(n_rows * len(chosen), n_sources, dtype=torch.float64)
    return summed.index_add_(0, flat, found.effects).view(n_rows, len(chosen), n_sources)
