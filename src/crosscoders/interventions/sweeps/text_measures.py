"""What can be said of an answer without knowing what it is about: length, repetition, loops, coherence."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.models.base import LanguageModel


@typed
def repetition(ids: Sequence[int], *, n_gram: int = 4) -> float:
    """Share of an answer's n-grams that occurred earlier in it: 1 - (distinct n-grams) / (n-grams).

    The measure is rep-n of Welleck et al. 2020. It is high both for a text that loops and for one that goes
    over the same step again and again in other words; `loop_share` tells them apart.

    Args:
        ids: Token ids of the answer.
        n_gram: Tokens per n-gram.

    Returns:
        A share in [0, 1); NaN for an answer of fewer than `n_gram` tokens.

    Raises:
        ValueError: `n_gram` below 1.
    """
    if n_gram < 1:
        raise ValueError(f"repetition: n_gram must be at least 1, got {n_gram}.")
    grams = [tuple(ids[at : at + n_gram]) for at in range(len(ids) - n_gram + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else float("nan")


@typed
def loop_share(ids: Sequence[int], *, min_copies: int = 3, max_period: int = 256) -> float:
    """Share of an answer taken by its longest verbatim loop: one block of tokens, copied back to back.

    A stretch of t tokens loops with period p if each of its tokens equals the one p places before it; it
    holds t / p copies of its block, the last perhaps cut short. Of all stretches with at least `min_copies`
    copies the longest counts.

    Args:
        ids: Token ids of the answer.
        min_copies: Copies from which a stretch counts as a loop, at least 2.
        max_period: Longest block looked for, which bounds the time by `len(ids) * max_period`.

    Returns:
        A share in [0, 1]: 0 without a loop, 1 if the whole answer is one.

    Raises:
        ValueError: An empty answer, `min_copies` below 2 or `max_period` below 1.
    """
    if len(ids) == 0 or min_copies < 2 or max_period < 1:
        raise ValueError(
            f"loop_share: expected an answer, min_copies of at least 2 and max_period of at least 1; got "
            f"{len(ids)} tokens, {min_copies} and {max_period}."
        )
    tokens, longest = np.asarray(ids), 0
    for period in range(1, min(max_period, len(ids) // min_copies) + 1):
        stretch = _longest_run(tokens[period:] == tokens[:-period]) + period
        if stretch >= min_copies * period:
            longest = max(longest, stretch)
    return longest / len(ids)


def _longest_run(is_same: np.ndarray) -> int:
    """Length of the longest run of True."""
    breaks = np.flatnonzero(np.concatenate(([True], ~is_same, [True])))
    return int(np.diff(breaks).max()) - 1


@typed
def is_finished(ids: Sequence[int], *, stop_ids: Sequence[int]) -> bool:
    """Whether an answer ended by itself, in a stop id, rather than at the length limit.

    Args:
        ids: Token ids of the answer, its stop id included.
        stop_ids: Ids that end an answer.
    """
    return len(ids) > 0 and ids[-1] in stop_ids


@typed
def mean_log_probability(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    batch_size: int = 16,
) -> Float[Tensor, " _answers"]:
    """Coherence: mean log-probability per token of each answer, as the model reads it after its prompt.

    (1 / T) sum_t log p(a_t | prompt, a_1 ... a_{t-1}), in nats, the stop id included. Under the unsteered
    model it says how far an answer is from what that model would write. Text that repeats itself is *more*
    likely than other text, so read it beside `repetition`.

    Args:
        model: The reader; steer it and the steered model reads.
        prompts: Token ids of each prompt.
        answers: Token ids of each answer, none empty.
        batch_size: Texts read together; each needs `tokens * vocabulary` logits.

    Returns:
        One value per answer, in float64 on the CPU.

    Raises:
        ValueError: Another number of answers than prompts, or an empty one.
    """
    if len(prompts) != len(answers):
        raise ValueError(f"mean_log_probability: got {len(prompts)} prompts and {len(answers)} answers.")
    empty = [at for at, pair in enumerate(zip(prompts, answers, strict=True)) if not all(map(len, pair))]
    if empty:
        raise ValueError(
            f"mean_log_probability: prompt or answer {empty[0]} is empty ({len(empty)} are); nothing of it "
            "can be read."
        )
    means = torch.empty(len(answers), dtype=torch.float64)
    order = sorted(range(len(answers)), key=lambda at: len(prompts[at]) + len(answers[at]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        means[rows] = _read(model, [prompts[at] for at in rows], [answers[at] for at in rows])
    return means


def _read(
    model: LanguageModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> Float[Tensor, " _answers"]:
    texts = [torch.tensor([*p, *a]) for p, a in zip(prompts, answers, strict=True)]
    tokens = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    log_p = model.logits(tokens)[:, :-1].float().log_softmax(dim=-1)
    targets = tokens[:, 1:].to(log_p.device)
    of_token = log_p.gather(2, targets[:, :, None])[:, :, 0].double().cpu()
    place = torch.arange(1, tokens.shape[1])
    starts = torch.tensor([len(p) for p in prompts])[:, None]
    ends = torch.tensor([len(text) for text in texts])[:, None]
    is_answer = (place >= starts) & (place < ends)
    return torch.where(is_answer, of_token, 0.0).sum(dim=1) / is_answer.sum(dim=1)
