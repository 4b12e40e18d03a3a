"""Measures of answers: repetition, loops and coherence against computations by hand."""

import math
import random

import pytest
import torch
from torch.testing import assert_close

from crosscoders.interventions.sweeps.text_measures import (
    is_finished,
    loop_share,
    mean_log_probability,
    repetition,
)
from crosscoders.models import LanguageModel
from tests.data.toy_models import N_VOCAB

PROMPTS = [[5, 6, 7, 8], [3, 9], [9, 3, 4, 10, 11, 12], [10]]
ANSWERS = [[4, 5], [7, 8, 9, 10, 11, 1], [6], [12, 12, 12, 1]]


def brute_force_loop(ids: list[int], *, min_copies: int) -> float:
    """Every stretch and every period, one after the other."""
    best = 0
    for start in range(len(ids)):
        for stop in range(start + 1, len(ids) + 1):
            part = ids[start:stop]
            for period in range(1, len(part) // min_copies + 1):
                if all(part[at] == part[at - period] for at in range(period, len(part))):
                    best = max(best, len(part))
    return best / len(ids)


def test_repetition_counts_n_grams_seen_before() -> None:
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert repetition([7] * 13) == pytest.approx(9 / 10)
    assert repetition([1, 2, 1, 2, 1], n_gram=2) == 2 / 4
    assert math.isnan(repetition([1, 2, 3]))
    with pytest.raises(ValueError, match="n_gram must be at least 1"):
        repetition([1], n_gram=0)


@pytest.mark.parametrize("min_copies", [2, 3])
def test_loops_agree_with_brute_force(min_copies: int) -> None:
    rng = random.Random(0)
    shares = set()
    for _ in range(150):
        block = [rng.randint(0, 3) for _ in range(rng.randint(1, 5))]
        ids = [rng.randint(0, 3) for _ in range(rng.randint(1, 6))] + block * rng.randint(1, 4)
        ids += [rng.randint(0, 3) for _ in range(rng.randint(0, 4))]
        share = loop_share(ids, min_copies=min_copies)
        assert share == brute_force_loop(ids, min_copies=min_copies)
        shares.add(share)
    assert len(shares) > 20


def test_only_verbatim_copies_back_to_back_are_a_loop() -> None:
    block = list(range(10, 20))
    assert loop_share(block * 5) == 1
    assert loop_share([1, 2, 3, *block * 3]) == 30 / 33
    assert loop_share([token for n in range(3, 9) for token in (n, *block)]) == 0  # other words between
    assert loop_share(block * 5, max_period=9) == 0
    with pytest.raises(ValueError, match="expected an answer"):
        loop_share([])


def test_an_answer_is_finished_by_a_stop_id_alone() -> None:
    assert is_finished([4, 1], stop_ids=(1, 2))
    assert not is_finished([1, 4], stop_ids=(1, 2))
    assert not is_finished([], stop_ids=(1,))


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_coherence_is_the_mean_log_probability_one_text_at_a_time(
    model: LanguageModel, batch_size: int
) -> None:
    expected = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        total, read = 0.0, list(prompt)
        for token in answer:
            p = model.logits(torch.tensor([read]))[0, -1].double().exp()
            total += math.log(p[token] / p.sum())
            read.append(token)
        expected.append(total / len(answer))
    means = mean_log_probability(model, PROMPTS, ANSWERS, batch_size=batch_size)
    assert_close(means, torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-5)


def test_coherence_is_highest_for_what_the_model_would_say(model: LanguageModel) -> None:
    prompt, scores = [5, 6, 7], []
    best = int(model.logits(torch.tensor([prompt]))[0, -1].argmax())
    for token in range(N_VOCAB):
        scores.append(float(mean_log_probability(model, [prompt], [[token]])))
    assert max(range(N_VOCAB), key=scores.__getitem__) == best
    assert sum(map(math.exp, scores)) == pytest.approx(1, abs=1e-5)


def test_unusable_answers_raise(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="2 prompts and 1 answers"):
        mean_log_probability(model, [[1], [2]], [[3]])
    with pytest.raises(ValueError, match="prompt or answer 1 is empty"):
        mean_log_probability(model, [[1], [2]], [[3], []])
