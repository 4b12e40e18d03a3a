"""How well latents tell tokens apart by yes-or-no questions, streamed."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._typing import typed

_BINS_PER_OCTAVE_LOG2 = 3
_LOWEST_OCTAVE, _HIGHEST_OCTAVE = -12, 12
N_BINS = (_HIGHEST_OCTAVE - _LOWEST_OCTAVE) << _BINS_PER_OCTAVE_LOG2


class Enrichment:
    """How well each latent's activation answers yes-or-no questions about tokens, streamed over any number.

    Per latent and question: precision = P(yes | fired), recall = P(fired | yes) and the AUROC of the
    activation, P(a yes token activates it more than a no token) with ties counted half (the Mann-Whitney
    statistic, as `crosscoders.metrics.auroc`). The AUROC comes from a histogram with eight bins an octave,
    within which all tie (the exact value differs by less than 0.01 in practice); silent latents tie at zero.

    Args:
        n_latents: Latents of the crosscoder.
        questions: Names of the questions.
    """

    def __init__(self, n_latents: int, questions: tuple[str, ...]) -> None:
        self.n_latents = n_latents
        self.questions = questions
        self._asked = {name: torch.zeros(2, dtype=torch.int64) for name in questions}
        self._fired = {name: torch.zeros(2 * n_latents * N_BINS, dtype=torch.int32) for name in questions}

    @typed
    def update(
        self,
        rows: Int[Tensor, " nnz"],
        indices: Int[Tensor, " nnz"],
        values: Float[Tensor, " nnz"],
        *,
        answers: Mapping[str, Int[Tensor, " batch"]],
    ) -> None:
        """Add the non-zero latents of a batch of tokens.

        Args:
            rows: Token of each non-zero.
            indices: Latent of each non-zero.
            values: Its activation, above zero.
            answers: For each question 1, 0, or -1 where it is not asked.

        Raises:
            ValueError: The questions are not those that were announced.
        """
        if set(answers) != set(self.questions):
            raise ValueError(
                f"Enrichment.update: expected answers to {sorted(self.questions)}, got {sorted(answers)}."
            )
        cells = indices * N_BINS + _bin(values)
        ones = torch.ones_like(cells, dtype=torch.int32)
        for name, answer in answers.items():
            self._asked[name] += torch.bincount(answer[answer >= 0], minlength=2)[:2]
            answer_of = answer[rows]
            asked = answer_of >= 0
            at = answer_of[asked] * (self.n_latents * N_BINS) + cells[asked]
            self._fired[name].index_add_(0, at, ones[asked])

    @typed
    def asked(self, question: str) -> tuple[int, int]:
        """Number of tokens with the answers no and yes.

        Args:
            question: Name of the question.

        Returns:
            (tokens answered no, tokens answered yes).

        Raises:
            KeyError: No such question.
        """
        no, yes = self._asked[question].tolist()
        return int(no), int(yes)

    @typed
    def scores(self, question: str) -> dict[str, Float[Tensor, " latent"]]:
        """Precision, recall and AUROC of every latent on one question.

        Args:
            question: Name of the question.

        Returns:
            Keys "precision", "recall", "auroc", in float64. NaN where undefined: precision of a latent that
            never fired on a token asked about, recall without a yes, AUROC unless both answers occur.

        Raises:
            KeyError: No such question.
        """
        fired = self._fired[question].view(2, self.n_latents, N_BINS).double()
        n_no, n_yes = self._asked[question].double()
        no, yes = fired[0].sum(dim=1), fired[1].sum(dim=1)
        below = fired[0].cumsum(dim=1) - fired[0]
        above_silent = (fired[1] * (below + 0.5 * fired[0] + (n_no - no)[:, None])).sum(dim=1)
        wins = above_silent + (n_yes - yes) * 0.5 * (n_no - no)
        return {"precision": yes / (yes + no), "recall": yes / n_yes, "auroc": wins / (n_yes * n_no)}


def _bin(values: Tensor) -> Tensor:
    """Histogram bin of positive float32 values: the exponent and the leading bits of the mantissa."""
    bits = values.float().contiguous().view(torch.int32).long() >> (23 - _BINS_PER_OCTAVE_LOG2)
    lowest = (127 + _LOWEST_OCTAVE) << _BINS_PER_OCTAVE_LOG2
    return (bits - lowest).clamp(0, N_BINS - 1)  # the outermost bins take the rest
