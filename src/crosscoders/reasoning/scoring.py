"""Annotations put to the test: detection and fuzzing on snippets that the annotator did not see."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch

from crosscoders._typing import typed
from crosscoders.bootstrap import wilson_interval
from crosscoders.reasoning.annotators import Annotation, categories_near
from crosscoders.reasoning.lexical import LexicalAnnotator
from crosscoders.reasoning.snippets import Snippet


@dataclass(frozen=True, kw_only=True)
class MarkedSnippet:
    """A snippet with some of its tokens marked, rightly or wrongly.

    Args:
        snippet: The snippet.
        marks: Marked tokens, as indices into its pieces.
    """

    snippet: Snippet
    marks: frozenset[int]


@runtime_checkable
class Judge(Protocol):
    """Something that guesses from an annotation alone what its latent does; None is no usable answer."""

    @typed
    def fires(self, annotation: Annotation, snippets: Sequence[Snippet]) -> Sequence[bool | None]:
        """For each snippet whether the latent fires somewhere in it.

        Args:
            annotation: What is said of the latent.
            snippets: Snippets, their marks not shown.

        Returns:
            One answer per snippet, in order; None where the judge gives none.
        """
        ...

    @typed
    def rightly_marked(
        self, annotation: Annotation, marked: Sequence[MarkedSnippet]
    ) -> Sequence[bool | None]:
        """For each snippet whether the marked tokens are those on which the latent fires.

        Args:
            annotation: What is said of the latent.
            marked: Snippets with marks that may be wrong.

        Returns:
            One answer per snippet, in order; None where the judge gives none.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class BalancedAccuracy:
    """Mean of the shares of right answers among true and among false items; 0.5 is chance.

    Args:
        n_true: True items that were answered.
        n_true_right: Those answered yes.
        n_false: False items that were answered.
        n_false_right: Those answered no.
        n_unanswered: Items without a usable answer, which count in neither share.
    """

    n_true: int
    n_true_right: int
    n_false: int
    n_false_right: int
    n_unanswered: int = 0

    @property
    def value(self) -> float:
        """The balanced accuracy; NaN if either kind of item is missing."""
        if not self.n_true or not self.n_false:
            return math.nan
        return 0.5 * (self.n_true_right / self.n_true + self.n_false_right / self.n_false)

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the value; NaN if either kind of item is missing.

        Wilson's intervals of the two shares, put together by the square-and-add rule (Newcombe 1998).
        """
        if not self.n_true or not self.n_false:
            return math.nan, math.nan
        shares = [(self.n_true_right, self.n_true), (self.n_false_right, self.n_false)]
        bounds = [wilson_interval(right, n) for right, n in shares]
        below = math.hypot(*(right / n - low for (right, n), (low, _) in zip(shares, bounds)))
        above = math.hypot(*(high - right / n for (right, n), (_, high) in zip(shares, bounds)))
        return self.value - 0.5 * below, self.value + 0.5 * above


@typed
def detection_score(
    judge: Judge,
    annotation: Annotation,
    *,
    activating: Sequence[Snippet],
    non_activating: Sequence[Snippet],
    generator: torch.Generator,
) -> BalancedAccuracy:
    """Does the annotation tell contexts in which the latent fires from others?

    Args:
        judge: Sees the annotation and the unmarked snippets, in random order.
        annotation: What is tested.
        activating: Snippets in which the latent fires, none of them shown to the annotator.
        non_activating: Snippets in which it does not.
        generator: Draws the order.

    Returns:
        Balanced accuracy in [0, 1]; NaN if one side has no answered snippet.
    """
    items = [(snippet, True) for snippet in activating] + [(snippet, False) for snippet in non_activating]
    order = torch.randperm(len(items), generator=generator).tolist()
    items = [items[index] for index in order]
    answers = judge.fires(annotation, [snippet for snippet, _ in items]) if items else []
    return _scored([truth for _, truth in items], answers)


@typed
def fuzzing_score(
    judge: Judge, annotation: Annotation, *, activating: Sequence[Snippet], generator: torch.Generator
) -> BalancedAccuracy:
    """Does the annotation tell on which tokens the latent fires?

    Each snippet is shown twice, once with the tokens marked on which the latent fires and once with as many
    random others; one that has no others is left out.

    Args:
        judge: Sees the annotation and the marked snippets, in random order.
        annotation: What is tested.
        activating: Snippets in which the latent fires, none of them shown to the annotator.
        generator: Draws the wrong marks and the order.

    Returns:
        Balanced accuracy in [0, 1]; NaN if one side has no answered snippet.
    """
    items = []
    for snippet in activating:
        right = [index for index, value in enumerate(snippet.activations) if value > 0]
        others = [index for index, value in enumerate(snippet.activations) if not value > 0]
        if others:
            drawn = torch.randperm(len(others), generator=generator)[: len(right)].tolist()
            items.append((MarkedSnippet(snippet=snippet, marks=frozenset(right)), True))
            wrong = frozenset(others[index] for index in drawn)
            items.append((MarkedSnippet(snippet=snippet, marks=wrong), False))
    order = torch.randperm(len(items), generator=generator).tolist()
    items = [items[index] for index in order]
    answers = judge.rightly_marked(annotation, [marked for marked, _ in items]) if items else []
    return _scored([truth for _, truth in items], answers)


@final
class LexicalJudge:
    """Judges an annotation by the words of its category alone.

    It says that a latent fires where a phrase of the category stands in the snippet, and that tokens are
    rightly marked where such a phrase stands at, or opens right after, one of them. An annotation without a
    category gets no answers.

    Args:
        words: Lexical annotator; one with the packaged lexicon if None.
    """

    @typed
    def __init__(self, words: LexicalAnnotator | None = None) -> None:
        self.words = words if words is not None else LexicalAnnotator()

    @typed
    def fires(self, annotation: Annotation, snippets: Sequence[Snippet]) -> Sequence[bool | None]:
        """Whether a phrase of the category stands in each snippet.

        Args:
            annotation: Names the category.
            snippets: Snippets, as if unmarked.

        Returns:
            One answer per snippet, in order.
        """
        if annotation.category is None:
            return [None] * len(snippets)
        found = [self.words.openers("".join(snippet.pieces)) for snippet in snippets]
        return [any(opener.category == annotation.category for opener in openers) for openers in found]

    @typed
    def rightly_marked(
        self, annotation: Annotation, marked: Sequence[MarkedSnippet]
    ) -> Sequence[bool | None]:
        """Whether a phrase of the category stands at, or opens right after, a marked token.

        Args:
            annotation: Names the category.
            marked: Snippets with marks.

        Returns:
            One answer per snippet, in order.
        """
        if annotation.category is None:
            return [None] * len(marked)
        return [
            any(annotation.category in categories_near(self.words, item.snippet, at) for at in item.marks)
            for item in marked
        ]


def _scored(truths: Sequence[bool], answers: Sequence[bool | None]) -> BalancedAccuracy:
    if len(answers) != len(truths):
        raise ValueError(
            f"the judge gave {len(answers)} answers to {len(truths)} items; it must answer each."
        )
    answered = [(truth, answer) for truth, answer in zip(truths, answers) if answer is not None]
    return BalancedAccuracy(
        n_true=sum(truth for truth, _ in answered),
        n_true_right=sum(truth and answer for truth, answer in answered),
        n_false=sum(not truth for truth, _ in answered),
        n_false_right=sum(not truth and not answer for truth, answer in answered),
        n_unanswered=len(truths) - len(answered),
    )
