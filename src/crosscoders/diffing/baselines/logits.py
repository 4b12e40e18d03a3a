"""Logit differences by token: which next tokens one model prefers over a text, without any crosscoder."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.harvest import ModelSources
from crosscoders.sources import compared_pair

_POSITIONS_AT_ONCE = 64  # bounds the float64 copies: 80 MB each at 152,000 tokens of vocabulary


@dataclass(frozen=True, kw_only=True)
class TokenDifference:
    """One token of the vocabulary.

    Args:
        token_id: Its id.
        difference: Mean centered logit of the second model less that of the first.
        standard_error: Of that mean, over sequences.
        probability_first: Its mean probability in the first model.
        probability_second: In the second.
        kl_part: Its part of KL(second || first), in nats.
    """

    token_id: int
    difference: float
    standard_error: float
    probability_first: float
    probability_second: float
    kl_part: float


@dataclass(frozen=True, kw_only=True, eq=False)
class LogitDifferences:
    """Means over the tokens of a text of what two models say of each next token (`logit_differences`).

    Args:
        pair: Names of the first and the second source.
        n_tokens: Positions averaged over.
        n_sequences: Sequences that they come from.
        difference: Mean centered logit of the second model less that of the first; NaN for ids whose meaning
            the sources do not share.
        standard_error: Of that mean, with whole sequences as units; NaN for fewer than two.
        probability_first: Mean probability in the first model.
        probability_second: In the second.
        kl_part: Mean of p_second (log p_second - log p_first): the parts of KL(second || first), positive
            where the second model prefers the token.
        n_left_out: Ids beyond the smaller of the two vocabularies.
    """

    pair: tuple[str, str]
    n_tokens: int
    n_sequences: int
    difference: Float[Tensor, " vocab"]
    standard_error: Float[Tensor, " vocab"]
    probability_first: Float[Tensor, " vocab"]
    probability_second: Float[Tensor, " vocab"]
    kl_part: Float[Tensor, " vocab"]
    n_left_out: int = 0

    @typed
    def top(
        self, toward: Literal["first", "second"], *, n: int = 10, min_probability: int | float = 0.0
    ) -> list[TokenDifference]:
        """Tokens that one of the models prefers most by its logits, the strongest first.

        Args:
            toward: The model that prefers them.
            n: How many; fewer come where fewer are preferred.
            min_probability: Mean probability that a token must have in that model. Tokens that neither model
                ever says often differ most in their logits, and mean nothing.

        Raises:
            ValueError: `n` below 1, or a probability outside [0, 1).
        """
        if n < 1 or not 0 <= min_probability < 1:
            raise ValueError(
                f"LogitDifferences.top: expected n >= 1 and min_probability in [0, 1), got {n} and "
                f"{min_probability}."
            )
        sign = 1.0 if toward == "second" else -1.0
        probability = self.probability_second if toward == "second" else self.probability_first
        preferred = (sign * self.difference > 0) & (probability >= min_probability)
        ids = preferred.nonzero().flatten()
        order = torch.argsort(sign * self.difference[ids], descending=True, stable=True)
        return [self.token(int(i)) for i in ids[order[:n]]]

    @typed
    def token(self, token_id: int) -> TokenDifference:
        """What was found of one token.

        Args:
            token_id: Its id.

        Raises:
            ValueError: No such id in both vocabularies.
        """
        if not 0 <= token_id < len(self.difference):
            raise ValueError(
                f"LogitDifferences.token: id {token_id} is outside 0..{len(self.difference) - 1}."
            )
        return TokenDifference(
            token_id=token_id,
            difference=float(self.difference[token_id]),
            standard_error=float(self.standard_error[token_id]),
            probability_first=float(self.probability_first[token_id]),
            probability_second=float(self.probability_second[token_id]),
            kl_part=float(self.kl_part[token_id]),
        )

    @typed
    def lines(self, *, tokenizer: Any = None, n: int = 10, min_probability: int | float = 0.0) -> list[str]:
        """The tokens that either model prefers most, as lines of text.

        Args:
            tokenizer: Turns ids into text with `convert_ids_to_tokens`; None prints ids.
            n: Tokens each way.
            min_probability: See `top`.
        """
        first, second = self.pair

        def ways(name: str, found: list[TokenDifference]) -> list[str]:
            return [f"  preferred by {name}:", *(_line(each, tokenizer) for each in found)]

        return [
            f"logit differences, {second} less {first}, {self.n_tokens} tokens",
            *ways(second, self.top("second", n=n, min_probability=min_probability)),
            *ways(first, self.top("first", n=n, min_probability=min_probability)),
        ]


def _line(found: TokenDifference, tokenizer: Any) -> str:
    shown = found.token_id if tokenizer is None else tokenizer.convert_ids_to_tokens(found.token_id)
    return (
        f"    {shown!r}: {found.difference:+.3f} (se {found.standard_error:.3f}), probability "
        f"{found.probability_first:.3g} to {found.probability_second:.3g}"
    )


@torch.no_grad()
@typed
def logit_differences(
    sources: ModelSources,
    tokens: Int[Tensor, "held_out pos"],
    *,
    mask: Bool[Tensor, "held_out pos"],
    pair: tuple[str, str] | None = None,
    batch_size: int = 4,
) -> LogitDifferences:
    """Mean difference of two models' next-token logits, for every token of the vocabulary, over a text.

    Logits have no common zero, so each position's are centered: delta_v = l_v - mean_u l_u over the ids that
    both models have. The mean over positions of delta^second - delta^first ranks tokens exactly as the mean
    difference of log-probabilities does. Widths, depths and hooks play no part. Sequences are the units of
    the standard error: se^2 = G / (G - 1) sum_g (S_g - n_g mean)^2 / N^2.

    Args:
        sources: The models, whole, not truncated.
        tokens: The text, padded on the right; each row is a sequence.
        mask: Positions whose next-token distribution is read.
        pair: (first, second) source; None for the first and the last.
        batch_size: Rows that go through the models together; both models' logits are in memory at once.

    Returns:
        The means, in float64 on the CPU.

    Raises:
        ValueError: No position, a truncated model, unknown sources, or `batch_size` below 1.

    Example:
        found = logit_differences(sources, tokens, mask=tokens != pad_id)
        lines = found.lines(tokenizer=sources.tokenizer, min_probability=1e-5)
    """
    first, second = compared_pair(sources.sources, pair, where="logit_differences")
    if batch_size < 1 or not bool(mask.any()):
        raise ValueError(
            "logit_differences: expected batch_size >= 1 and positions in mask, got "
            f"{batch_size} and {int(mask.sum())}."
        )
    names, vocabularies = (first.name, second.name), [sources.models[s.name].n_vocab for s in (first, second)]
    for name in names:
        sources.models[name].require_whole("the logit differences")
    sums = _Sums(min(vocabularies))
    for rows in torch.arange(len(tokens)).split(batch_size):
        logits = [_logits(sources, name, tokens[rows]) for name in names]
        for at, is_read in enumerate(mask[rows].cpu()):
            if bool(is_read.any()):
                sums.add(*(each[at, is_read.to(each.device)] for each in logits))
    differing = () if sources.id_policy is None else sources.id_policy.covered_ids
    return sums.result(names, differing=differing, n_left_out=max(vocabularies) - min(vocabularies))


def _logits(sources: ModelSources, name: str, tokens: Tensor) -> Tensor:
    with sources.on_device(name) as model:
        return model.logits(sources.tokens_for(name, tokens))


class _Sums:
    """Sums by token of the vocabulary over positions, and of their squares over sequences.

    Squares are about the first sequence's mean, so that a change common to all sequences costs no digits.
    """

    def __init__(self, n_vocab: int) -> None:
        self._n_vocab, self._n_tokens, self._n_sequences = n_vocab, 0, 0
        self._n_squared = 0
        self._sums = torch.zeros(4, n_vocab, dtype=torch.float64)
        self._about: Tensor | None = None
        self._squares, self._products = (torch.zeros(n_vocab, dtype=torch.float64) for _ in range(2))

    def add(self, first: Tensor, second: Tensor) -> None:
        """Add the read positions [pos vocab] of one sequence."""
        n = len(first)
        pieces = zip(first.split(_POSITIONS_AT_ONCE), second.split(_POSITIONS_AT_ONCE), strict=True)
        summed = torch.stack([self._summed(a.double(), b.double()).cpu() for a, b in pieces]).sum(dim=0)
        self._about = summed[0] / n if self._about is None else self._about
        shifted = summed[0] - n * self._about
        self._sums += summed
        self._squares += shifted.square()
        self._products += n * shifted
        self._n_tokens, self._n_sequences = self._n_tokens + n, self._n_sequences + 1
        self._n_squared += n * n

    def _summed(self, a: Tensor, b: Tensor) -> Tensor:
        """Centered logit difference, both probabilities and the part of the KL, summed over positions."""
        log_a, log_b = (each.log_softmax(dim=-1)[:, : self._n_vocab] for each in (a, b.to(a.device)))
        p_b, change = log_b.exp(), log_b - log_a
        centered = change - change.mean(dim=-1, keepdim=True)
        return torch.stack([each.sum(dim=0) for each in (centered, log_a.exp(), p_b, p_b * change)])

    def result(
        self, pair: tuple[str, str], *, differing: tuple[int, ...], n_left_out: int
    ) -> LogitDifferences:
        """Means and standard errors over everything added, which is something."""
        assert self._about is not None  # the caller checked that there is a position
        n, n_sequences = self._n_tokens, self._n_sequences
        difference, first, second, kl_part = self._sums / n
        off = difference - self._about
        scatter = self._squares - 2 * off * self._products + off.square() * self._n_squared
        corrected = n_sequences / (n_sequences - 1) if n_sequences > 1 else math.nan
        difference[[i for i in differing if i < self._n_vocab]] = math.nan
        return LogitDifferences(
            pair=pair,
            n_tokens=n,
            n_sequences=n_sequences,
            difference=difference,
            standard_error=(corrected * scatter).sqrt() / n,
            probability_first=first,
            probability_second=second,
            kl_part=kl_part,
            n_left_out=n_left_out,
        )
