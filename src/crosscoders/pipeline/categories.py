"""One latent per category: chosen on one split of labeled text, scored on another beside what is possible."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.latents import LatentTable
from crosscoders.metrics import auroc
from crosscoders.reasoning import CATEGORIES
from crosscoders.zoo.corpus import LabelledTokens, category_contrasts
from crosscoders.zoo.text import FORMS

ONSET, FUNCTION = "onset", "function"


@dataclass(frozen=True, kw_only=True)
class CategoryLatent:
    """The latent chosen for a category and how it does on the split that did not choose it.

    Args:
        kind: "onset" or "function", the question that it answers.
        category: Reasoning category.
        latent: Its number in the crosscoder.
        auroc_chosen: AUROC on the choosing split, which is optimistic.
        auroc: AUROC on the other split.
        bound: AUROC of the generator's own probabilities there, for onsets only: nobody who reads the text
            so far can do better on average.
        n_yes: Tokens of the other split answered yes.
        n_no: Tokens answered no.
    """

    kind: str
    category: str
    latent: int
    auroc_chosen: float
    auroc: float
    bound: float | None
    n_yes: int
    n_no: int

    @property
    def questions(self) -> tuple[str, ...]:
        """Names of the questions that the scores average over."""
        return category_questions(self.kind, self.category)


@typed
def category_questions(kind: str, category: str) -> tuple[str, ...]:
    """Names of the questions of a kind about a category: one on its onset, or one for each marker word.

    Args:
        kind: "onset" or "function".
        category: A reasoning category.
    """
    if kind == ONSET:
        return (f"{ONSET}/{category}",)
    return tuple(f"{FUNCTION}/{category}/{marker}" for marker in FORMS[category])


@typed
def question_scores(table: LatentTable, kind: str, category: str) -> Float[Tensor, " latent"]:
    """AUROC per latent of the onset question, or the mean over marker words of the function questions.

    The mean is over words so that only uses of the *same* word are ever compared.

    Args:
        table: A table with the enrichment of these questions.
        kind: "onset" or "function".
        category: Reasoning category.

    Raises:
        KeyError: The table holds no such question.
    """
    scores = [table[f"auroc/{question}"] for question in category_questions(kind, category)]
    return torch.stack(scores).mean(dim=0)


@typed
def choose_category_latents(
    choose: LatentTable, score: LatentTable, labels: LabelledTokens
) -> list[CategoryLatent]:
    """For each kind of question and category the best latent on `choose`, with its score on `score`.

    Args:
        choose: Table measured on the choosing split.
        score: Table measured on the other.
        labels: Labels of the other split.

    Returns:
        Onsets of all categories, then functions.

    Raises:
        KeyError: A table lacks a question.
        ValueError: No latent has a score for one: the choosing split never answers it both ways.
    """
    contrasts = category_contrasts(labels)
    found = []
    for kind in (ONSET, FUNCTION):
        for index, category in enumerate(CATEGORIES):
            scores = question_scores(choose, kind, category)
            latent = _best(scores, question=f"{kind}/{category}")
            questions = category_questions(kind, category)
            found.append(
                CategoryLatent(
                    kind=kind,
                    category=category,
                    latent=latent,
                    auroc_chosen=float(scores[latent]),
                    auroc=float(question_scores(score, kind, category)[latent]),
                    bound=_bound(labels, contrasts[questions[0]], index) if kind == ONSET else None,
                    n_yes=sum(int((contrasts[q] == 1).sum()) for q in questions),
                    n_no=sum(int((contrasts[q] == 0).sum()) for q in questions),
                )
            )
    return found


def _best(scores: Tensor, *, question: str) -> int:
    if bool(scores.isnan().all()):
        raise ValueError(
            f"choose_category_latents: no latent has a score for {question!r}; the choosing split needs "
            "tokens answered yes and tokens answered no for each of its words. Hold out more text."
        )
    return int(torch.where(scores.isnan(), -torch.inf, scores).argmax())


def _bound(labels: LabelledTokens, answer: Tensor, category: int) -> float:
    asked = answer >= 0
    return float(auroc(labels.p_category[asked][:, category], answer[asked] == 1))


@typed
def shuffled(labels: LabelledTokens, *, seed: int, within_origin: bool = False) -> LabelledTokens:
    """The same tokens with their category labels permuted among tokens of the same id.

    Keeps how often each token starts or belongs to an act, and destroys where. Permuted within each kind of
    text, the labels still tell how much the kind of text alone gives away.

    Args:
        labels: Labels to permute; they stay as they are.
        seed: Seed of the permutation.
        within_origin: Permute only among tokens of one kind of text.
    """
    generator = torch.Generator().manual_seed(seed)
    key = labels.tokens * 64 + (labels.origin + 1 if within_origin else 0)
    columns = {name: getattr(labels, name).clone() for name in ("function", "form", "onset", "p_category")}
    for value in key.unique().tolist():
        at = (key == value).nonzero(as_tuple=True)
        order = torch.randperm(len(at[0]), generator=generator)
        for column in columns.values():
            column[at] = column[at[0][order], at[1][order]]
    return LabelledTokens(
        tokens=labels.tokens,
        origin=labels.origin,
        slip_pending=labels.slip_pending,
        is_prompt=labels.is_prompt,
        **columns,
    )
