"""Which reasoning category a latent goes with: by words, and by labels where there are some."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.reasoning.lexical import LexicalAnnotator
from crosscoders.reasoning.snippets import Snippet

NO_EVIDENCE = "no snippets"
EVERYWHERE = "words of every category stand near every random token"


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """What an annotator says of a latent.

    Args:
        latent: Its number in the crosscoder.
        category: Reasoning category, or None if none wins.
        score: How strong the evidence for the best category is, in the annotator's own unit; NaN without any.
        explanation: Why, in words.
    """

    latent: int
    category: str | None
    score: float
    explanation: str


@runtime_checkable
class LatentAnnotator(Protocol):
    """Something that says which category a latent goes with."""

    @typed
    def annotate(self, latent: int, snippets: Sequence[Snippet]) -> Annotation:
        """Annotate one latent from snippets in which it fires.

        Args:
            latent: Its number in the crosscoder.
            snippets: Snippets in which it fires.

        Returns:
            Category, explanation and score of the latent.
        """
        ...


@final
class LexicalLatentAnnotator:
    """The category whose phrases stand at the activating token, or open right after it, in most snippets.

    With p the share of snippets in which that is so and b the same share among random snippets, a category
    scores (p - b) / (1 - b): 0 is what any token shows, 1 is every snippet (as Cohen's kappa corrects for
    chance). The best category wins if it scores `min_score` and leads the next by `min_lead`.

    Args:
        random: Random snippets, which say how often a category's words stand anywhere.
        words: Lexical annotator; one with the packaged lexicon if None.
        min_score: Least score of a winner.
        min_lead: Least lead over the next category.

    Raises:
        ValueError: No random snippets, or a threshold outside of 0 to 1.
    """

    @typed
    def __init__(
        self,
        random: Sequence[Snippet],
        *,
        words: LexicalAnnotator | None = None,
        min_score: float = 0.5,
        min_lead: float = 0.25,
    ) -> None:
        if not random:
            raise ValueError("LexicalLatentAnnotator: random is empty; base rates need random snippets.")
        for name, value in (("min_score", min_score), ("min_lead", min_lead)):
            if not 0 <= value <= 1:
                raise ValueError(f"LexicalLatentAnnotator: {name} must be from 0 to 1, got {value}.")
        self.words = words if words is not None else LexicalAnnotator()
        self.min_score, self.min_lead = min_score, min_lead
        self.base_rates = self._shares(random)

    @typed
    def annotate(self, latent: int, snippets: Sequence[Snippet]) -> Annotation:
        """Annotate one latent from snippets in which it fires.

        Args:
            latent: Its number in the crosscoder.
            snippets: Snippets with the activating token marked.

        Returns:
            Its annotation; score NaN and no category without snippets, or where every
            category's words stand near every random token.
        """
        if not snippets:
            return Annotation(latent=latent, category=None, score=float("nan"), explanation=NO_EVIDENCE)
        shares = self._shares(snippets)
        scores = {
            name: (share - self.base_rates[name]) / (1 - self.base_rates[name])
            for name, share in shares.items()
            if self.base_rates[name] < 1
        }
        if not scores:
            return Annotation(latent=latent, category=None, score=float("nan"), explanation=EVERYWHERE)
        ranked = sorted(scores, key=lambda name: -scores[name])
        best, *others = ranked
        lead = scores[best] - max((scores[name] for name in others), default=0.0)
        wins = scores[best] >= self.min_score and lead >= self.min_lead
        explanation = (
            f"words of {best} stand at or right after the activating token in {shares[best]:.0%} of "
            f"{len(snippets)} snippets, at random tokens in {self.base_rates[best]:.0%}"
        )
        return Annotation(
            latent=latent, category=best if wins else None, score=scores[best], explanation=explanation
        )

    def _shares(self, snippets: Sequence[Snippet]) -> dict[str, float]:
        near = [categories_near(self.words, snippet, snippet.at) for snippet in snippets]
        return {
            name: sum(name in categories for categories in near) / len(near) for name in self.words.lexicon
        }


@typed
def categories_near(words: LexicalAnnotator, snippet: Snippet, at: int) -> frozenset[str]:
    """Categories whose phrases stand at a token of a snippet, or open at the next one.

    Args:
        words: Says where phrases stand.
        snippet: The snippet.
        at: Index of the token.
    """
    starts = [0]
    for piece in snippet.pieces:
        starts.append(starts[-1] + len(piece))
    next_one = starts[at + 1] if at + 1 < len(snippet.pieces) else None
    after = starts[at + 2] if next_one is not None else starts[at + 1]
    return frozenset(
        opener.category
        for opener in words.openers("".join(snippet.pieces))
        if (opener.start < starts[at + 1] and opener.stop > starts[at])
        or (next_one is not None and next_one <= opener.start < after)
    )


@final
class LabelAnnotator:
    """The category whose labeled tokens a latent tells best from others, by AUROC.

    Reads the columns `auroc/onset/<category>` and `auroc/function/<category>/<marker>` of a table of latents
    (averaged over the markers that have one: one that does not occur is NaN and left out); a category's
    score is the larger of the two. 0.5 is chance. It needs labels,
    which only text of known making has; snippets play no part.

    Args:
        columns: Columns of a `LatentTable`.
        categories: Categories to choose from.
        threshold: Least AUROC of a winner.

    Raises:
        ValueError: A threshold of at most 0.5, or no column about any category.
    """

    @typed
    def __init__(
        self, columns: Mapping[str, Tensor], *, categories: Sequence[str], threshold: float = 0.8
    ) -> None:
        if not 0.5 < threshold <= 1:
            raise ValueError(
                f"LabelAnnotator: threshold must be above 0.5 (chance) and at most 1, got {threshold}."
            )
        self.threshold = threshold
        self._row = {int(latent): row for row, latent in enumerate(columns["latent"].tolist())}
        self._scores = {
            f"{kind} of {category}": (category, scores)
            for category in categories
            for kind, scores in _label_scores(columns, category).items()
        }
        if not self._scores:
            raise ValueError(
                f"LabelAnnotator: the table answers no question about {list(categories)}; it has "
                f"{[name for name in columns if name.startswith('auroc/')]}."
            )

    @typed
    def annotate(self, latent: int, snippets: Sequence[Snippet] = ()) -> Annotation:
        """Annotate one latent from its row of the table.

        Args:
            latent: Its number in the crosscoder.
            snippets: Not used.

        Returns:
            Category and score of the latent.

        Raises:
            KeyError: The table has no such latent.
        """
        if latent not in self._row:
            raise KeyError(f"LabelAnnotator: the table has no latent {latent}.")
        found = [
            (float(scores[self._row[latent]]), question, category)
            for question, (category, scores) in self._scores.items()
        ]
        known = [entry for entry in found if entry[0] == entry[0]]
        if not known:
            return Annotation(
                latent=latent, category=None, score=float("nan"), explanation="no question has an answer"
            )
        score, question, category = max(known)
        return Annotation(
            latent=latent,
            category=category if score >= self.threshold else None,
            score=score,
            explanation=f"AUROC {score:.3f} on the {question}",
        )


@typed
def has_labels(columns: Mapping[str, Tensor]) -> bool:
    """Whether a table of latents was measured on text that says which uses of a word are acts.

    Args:
        columns: Columns of a `LatentTable`.

    Returns:
        True if there are columns of questions about acts.
    """
    return any(name.startswith("auroc/function/") for name in columns)


@typed
def label_categories(columns: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Categories that a table of latents has questions about, as `LabelAnnotator` reads them.

    Args:
        columns: Columns of a `LatentTable`.

    Returns:
        In the order of the columns, each once.
    """
    parts = [name.split("/") for name in columns]
    named = [
        part[2] for part in parts if len(part) > 2 and part[0] == "auroc" and part[1] in ("onset", "function")
    ]
    return tuple(dict.fromkeys(named))


def _label_scores(columns: Mapping[str, Tensor], category: str) -> dict[str, Tensor]:
    found = {}
    if f"auroc/onset/{category}" in columns:
        found["onset"] = columns[f"auroc/onset/{category}"].double()
    markers = [column for name, column in columns.items() if name.startswith(f"auroc/function/{category}/")]
    if markers:
        found["function"] = torch.stack(markers).double().nanmean(dim=0)
    return found
