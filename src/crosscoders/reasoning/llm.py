"""Annotation by a language model behind an endpoint, and judging by one; scored, not trusted."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from crosscoders._typing import typed
from crosscoders.reasoning.annotators import NO_EVIDENCE, Annotation, LatentAnnotator
from crosscoders.reasoning.endpoint import ChatClient, CostEstimate, EndpointError, Message
from crosscoders.reasoning.lexicon import CategoryWords
from crosscoders.reasoning.scoring import MarkedSnippet
from crosscoders.reasoning.snippets import Snippet

log = logging.getLogger(__name__)
NO_CATEGORY = "none"
_TYPICAL_EXPLANATION = "x" * 200  # stands for the explanation in estimates, before there is one
_N_HINTS = 6
_CATEGORY_HELP = {
    "self-reflection": "checking or doubting what was said before",
    "deductive": "drawing a conclusion from what was said before",
    "alternative": "turning to another way of doing it",
    "contrastive": "setting something against what was said before",
}
_ANNOTATE = """You look at snippets of text in which one feature of a neural network is active. The token \
on which it is most active is in [[double brackets]]; the number before each snippet is its activation on a \
scale of 0 to 10. Say in one sentence what the snippets have in common at or right after the marked token, \
words or meaning. Then say which category of reasoning the feature goes with, or "none" if it goes with none:
{categories}
Answer with JSON only: {{"explanation": "...", "category": "..."}}"""
_FIRES = """A feature of a neural network is described as follows: {explanation}
For each numbered snippet, say whether the feature is active somewhere in it (1) or nowhere (0).
Answer with JSON only: a list of {n} numbers, in the order of the snippets."""
_MARKED = """A feature of a neural network is described as follows: {explanation}
In each numbered snippet some tokens are in [[double brackets]]. Say whether the marked tokens are those on \
which the feature is active (1) or others (0).
Answer with JSON only: a list of {n} numbers, in the order of the snippets."""


@final
class LLMAnnotator:
    """Asks a language model what a latent's snippets have in common, and for its category.

    Its score is NaN: what the annotation is worth, `detection_score` and `fuzzing_score` say.

    Args:
        client: The endpoint.
        categories: Categories to choose from, with a hint of what each means; the paper's four if None.
            `category_hints` makes them from a lexicon.

    Raises:
        ValueError: A category named "none", which is the answer for no category.
    """

    @typed
    def __init__(self, client: ChatClient, *, categories: Mapping[str, str] | None = None) -> None:
        self.client = client
        self.categories = dict(_CATEGORY_HELP if categories is None else categories)
        self._named = {name.strip().casefold(): name for name in self.categories}
        if NO_CATEGORY in self._named:
            raise ValueError(
                f"LLMAnnotator: category {self._named[NO_CATEGORY]!r} means no category; call it otherwise."
            )

    @typed
    def annotate(self, latent: int, snippets: Sequence[Snippet]) -> Annotation:
        """Annotate one latent from snippets in which it fires.

        Args:
            latent: Its number in the crosscoder.
            snippets: Snippets to show.

        Returns:
            Category, explanation and score of the latent.

        Raises:
            EndpointError: No usable answer after all retries.
        """
        if not snippets:
            return Annotation(latent=latent, category=None, score=float("nan"), explanation=NO_EVIDENCE)
        explanation, category = self.client.ask(self.messages(snippets), self._parse)
        return Annotation(latent=latent, category=category, score=float("nan"), explanation=explanation)

    @typed
    def estimate(self, snippets: Mapping[int, Sequence[Snippet]]) -> CostEstimate:
        """What annotating some latents would take; nothing is sent.

        Args:
            snippets: Snippets of each latent.

        Returns:
            Calls, tokens and cost, in the currency of the configured prices.
        """
        return self.client.estimate([self.messages(shown) for shown in snippets.values() if shown])

    @typed
    def messages(self, snippets: Sequence[Snippet]) -> list[Message]:
        """The question as it is sent.

        Args:
            snippets: Snippets to show.

        Returns:
            Chat messages with the keys "role" and "content".
        """
        largest = max(snippet.activation for snippet in snippets)
        help_lines = "\n".join(f"- {name}: {meaning}" for name, meaning in self.categories.items())
        shown = "\n".join(f"{10 * s.activation / largest:.0f}  {s.marked()}" for s in snippets)
        return _messages(_ANNOTATE.format(categories=help_lines), shown)

    def _parse(self, text: str) -> tuple[str, str | None]:
        answer = _json_in(text, "{", "}")
        if not isinstance(answer, dict) or not isinstance(answer.get("explanation"), str):
            raise ValueError("no explanation in it")
        said = str(answer.get("category")).strip()
        if said.casefold() not in (*self._named, NO_CATEGORY):
            raise ValueError(f"category {said!r} is not among {[*self.categories, NO_CATEGORY]}")
        return answer["explanation"].strip(), self._named.get(said.casefold())


@typed
def category_hints(lexicon: Mapping[str, CategoryWords]) -> dict[str, str]:
    """For `LLMAnnotator` what each category of a lexicon means; one not of the paper by some of its phrases.

    Args:
        lexicon: Words by category (`read_lexicon`).

    Returns:
        One line of text per category.
    """
    return {
        name: _CATEGORY_HELP.get(name, f"as with {', '.join(map(repr, words.phrases[:_N_HINTS]))}")
        for name, words in lexicon.items()
    }


@final
class LLMJudge:
    """Asks a language model to guess from an explanation alone; a question that fails gives no answers.

    After a refusal that nothing will change, or `give_up_after` failures in a row, nothing more is asked:
    every further question counts as failed. `n_skipped` says how many did and `why_skipped` why.

    Args:
        client: The endpoint.
        n_per_question: Snippets in one question.
        give_up_after: Failures in a row after which nothing more is asked.

    Raises:
        ValueError: `n_per_question` or `give_up_after` below 1.
    """

    @typed
    def __init__(self, client: ChatClient, *, n_per_question: int = 10, give_up_after: int = 3) -> None:
        for name, value in (("n_per_question", n_per_question), ("give_up_after", give_up_after)):
            if value < 1:
                raise ValueError(f"LLMJudge: {name} must be at least 1, got {value}.")
        self.client = client
        self.n_per_question = n_per_question
        self.give_up_after = give_up_after
        self.n_skipped, self.why_skipped = 0, ""
        self._n_in_a_row, self._gave_up = 0, False

    @typed
    def fires(self, annotation: Annotation, snippets: Sequence[Snippet]) -> Sequence[bool | None]:
        """For each snippet whether the latent fires somewhere in it.

        Args:
            annotation: Its explanation is shown.
            snippets: Shown unmarked.

        Returns:
            One answer per snippet, in order; None where there was no usable one.
        """
        return self._ask(_FIRES, annotation.explanation, [snippet.marked(()) for snippet in snippets])

    @typed
    def rightly_marked(
        self, annotation: Annotation, marked: Sequence[MarkedSnippet]
    ) -> Sequence[bool | None]:
        """For each snippet whether the marked tokens are those on which the latent fires.

        Args:
            annotation: Its explanation is shown.
            marked: Shown with their marks.

        Returns:
            One answer per snippet, in order; None where there was no usable one.
        """
        texts = [item.snippet.marked(item.marks) for item in marked]
        return self._ask(_MARKED, annotation.explanation, texts)

    @typed
    def estimate(
        self, activating: Sequence[Sequence[Snippet]], non_activating: Sequence[Sequence[Snippet]]
    ) -> CostEstimate:
        """What detection and fuzzing of some latents would take, with explanations of usual length.

        Args:
            activating: Test snippets of each latent.
            non_activating: Non-activating snippets of each latent.

        Returns:
            Calls, tokens and cost, in the currency of the configured prices.
        """
        questions = []
        for fired, silent in zip(activating, non_activating, strict=True):
            texts = [snippet.marked(()) for snippet in (*fired, *silent)]
            questions += self._questions(_FIRES, _TYPICAL_EXPLANATION, texts)
            twice = [snippet.marked(marks) for snippet in fired for marks in ({snippet.at}, {0})]
            questions += self._questions(_MARKED, _TYPICAL_EXPLANATION, twice)
        return self.client.estimate(questions)

    def _ask(self, template: str, explanation: str, texts: Sequence[str]) -> list[bool | None]:
        answers: list[bool | None] = []
        for at, question in enumerate(self._questions(template, explanation, texts)):
            n = len(texts[at * self.n_per_question :][: self.n_per_question])
            answers += self._flags(question, n)
        return answers

    def _flags(self, question: Sequence[Message], n: int) -> list[bool | None]:
        if not self._gave_up:
            try:
                answers = self.client.ask(question, lambda text: _parse_flags(text, n))
                self._n_in_a_row = 0
                return answers
            except EndpointError as err:
                log.warning("no answer about %d snippets: %s", n, err)
                self.why_skipped = str(err)
                self._n_in_a_row += 1
                self._gave_up = err.is_final or self._n_in_a_row == self.give_up_after
        self.n_skipped += 1
        return [None] * n

    def _questions(self, template: str, explanation: str, texts: Sequence[str]) -> list[list[Message]]:
        groups = [texts[at : at + self.n_per_question] for at in range(0, len(texts), self.n_per_question)]
        return [
            _messages(
                template.format(explanation=explanation, n=len(group)),
                "\n".join(f"{number}. {text}" for number, text in enumerate(group, 1)),
            )
            for group in groups
        ]


@dataclass(frozen=True, kw_only=True)
class AnnotationReport:
    """Annotations of many latents, and those that got none.

    Args:
        annotations: By latent.
        skipped: Why, by latent.
    """

    annotations: Mapping[int, Annotation]
    skipped: Mapping[int, str]


@typed
def annotate_latents(
    annotator: LatentAnnotator, snippets: Mapping[int, Sequence[Snippet]], *, give_up_after: int = 3
) -> AnnotationReport:
    """Annotate many latents and keep what succeeds.

    A latent without a usable answer is skipped and reported. After a refusal that nothing will change, or
    `give_up_after` failures in a row, the rest is skipped too: an endpoint that is gone is not asked a
    hundred times. Running again goes on from the cache.

    Args:
        annotator: Any annotator.
        snippets: Snippets of each latent.
        give_up_after: Failures in a row after which the rest is skipped.

    Returns:
        Annotations by latent, and why the others have none.

    Raises:
        ValueError: `give_up_after` below 1.
    """
    if give_up_after < 1:
        raise ValueError(f"annotate_latents: give_up_after must be at least 1, got {give_up_after}.")
    done: dict[int, Annotation] = {}
    skipped: dict[int, str] = {}
    n_in_a_row, given_up = 0, ""
    for latent, shown in snippets.items():
        if given_up:
            skipped[latent] = given_up
            continue
        try:
            done[latent] = annotator.annotate(latent, shown)
            n_in_a_row = 0
        except EndpointError as err:
            skipped[latent] = str(err)
            n_in_a_row += 1
            if err.is_final or n_in_a_row == give_up_after:
                given_up = f"not asked any more, after: {err}"
    return AnnotationReport(annotations=done, skipped=skipped)


def _messages(task: str, material: str) -> list[Message]:
    return [{"role": "system", "content": task}, {"role": "user", "content": material}]


def _parse_flags(text: str, n: int) -> list[bool | None]:
    answer = _json_in(text, "[", "]")
    if not isinstance(answer, list) or len(answer) != n or any(flag not in (0, 1) for flag in answer):
        raise ValueError(f"expected a list of {n} numbers 0 or 1")
    return [bool(flag) for flag in answer]


def _json_in(text: str, opening: str, closing: str) -> Any:
    """The JSON value between the first opening and the last closing bracket of a text."""
    start, stop = text.find(opening), text.rfind(closing)
    if start < 0 or stop < start:
        raise ValueError("no JSON in it")
    return json.loads(text[start : stop + 1])
