"""What a language model behind an endpoint says of both ends, and what it leaves unsaid."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crosscoders._typing import typed
from crosscoders.pipeline.config import build_config
from crosscoders.reasoning import (
    Annotation,
    ChatClient,
    CostEstimate,
    EndpointConfig,
    LLMAnnotator,
    LLMJudge,
    SnippetCollection,
    annotate_latents,
)

log = logging.getLogger(__name__)
_N_REASONS = 3


@typed
def endpoint_config(values: Mapping[str, Any]) -> EndpointConfig:
    """The endpoint of the experiment's options.

    Args:
        values: Fields of `EndpointConfig` by name.

    Raises:
        ValueError: An unknown key, a missing one or a value out of range; values that may be a key are not
            shown.
    """
    if not isinstance(values.get("api_key_env", ""), str | None):
        raise ValueError("AnnotationOptions: endpoint: api_key_env must be the name of a variable, a string.")
    return build_config(EndpointConfig, values, where="AnnotationOptions: endpoint")


class EndpointWork:
    """Annotates both ends through an endpoint as far as that goes, and keeps what to say about it.

    Args:
        config: The endpoint.
        categories: Categories with their hints.
        cache: Folder of the answers.
        max_cost: Ask nothing if that would cost more.

    Raises:
        ValueError: No usable key, or a category that an endpoint cannot be asked about.
    """

    @typed
    def __init__(
        self, config: EndpointConfig, *, categories: Mapping[str, str], cache: Path, max_cost: float
    ) -> None:
        self.client = ChatClient(config, cache=cache)
        self.annotator = LLMAnnotator(self.client, categories=categories)
        self.judge = LLMJudge(self.client)
        self.max_cost = max_cost
        self.estimate: CostEstimate | None = None
        self.skipped: Mapping[int, str] = {}

    @typed
    def annotate(self, collection: SnippetCollection, latents: Sequence[int]) -> dict[int, Annotation]:
        """Annotations of those latents that the endpoint answers about; none if that would take too much.

        Args:
            collection: Snippets of the latents.
            latents: Latents to ask about.
        """
        found = {latent: collection.latents[latent] for latent in latents}
        shown = {latent: snippets.shown for latent, snippets in found.items()}
        tests = [snippets.test for snippets in found.values()]
        silent = [collection.random[: len(test)] for test in tests]
        self.estimate = self.annotator.estimate(shown) + self.judge.estimate(tests, silent)
        log.info("asking %s would take %s", self.client.config.base_url, self.estimate)
        too_much = self._too_much(self.estimate)
        if too_much:
            log.warning("the endpoint is not asked: %s", too_much)
            self.skipped = dict.fromkeys(latents, f"not asked: {too_much}")
            return {}
        report = annotate_latents(self.annotator, shown)
        self.skipped = report.skipped
        return dict(report.annotations)

    @typed
    def lacks(self) -> list[str]:
        """What it did not answer, in sentences; empty if it answered everything."""
        said = []
        if self.skipped:
            reason = next(iter(self.skipped.values()))
            said.append(f"{len(self.skipped)} latents not annotated: endpoint {reason}")
        if self.judge.n_skipped:
            n = self.judge.n_skipped
            said.append(
                f"{n} questions that test annotations not answered: endpoint {self.judge.why_skipped}"
            )
        return [sentence.rstrip(".") + "." for sentence in said]

    @typed
    def lines(self) -> list[str]:
        """What asking would take, what it took, and what is missing."""
        reasons = sorted(set(self.skipped.values()))[:_N_REASONS]
        return [
            "",
            f"Endpoint, before it was asked: {self.estimate}.",
            f"Endpoint, all told: {self.client.report()}",
            f"Latents skipped: {len(self.skipped)}. Questions of the judge skipped: {self.judge.n_skipped}.",
            *(f"  {reason}" for reason in reasons),
            *([f"  {self.judge.why_skipped}"] if self.judge.n_skipped else []),
        ]

    def _too_much(self, estimate: CostEstimate) -> str:
        if estimate.cost > self.max_cost:
            return f"it would take {estimate}; max_cost is {self.max_cost:g}. Raise it, or lower n_latents"
        if estimate.n_calls > self.client.config.max_calls:
            bound = self.client.config.max_calls
            return f"it would take {estimate}; max_calls is {bound}. Raise it, or lower n_latents"
        return ""
