"""Annotators by words and by labels, selection with its control, scores and their intervals."""

import math

import pytest
import torch

from crosscoders.reasoning import (
    Annotation,
    BalancedAccuracy,
    CategoryWords,
    LabelAnnotator,
    LexicalAnnotator,
    LexicalJudge,
    LexicalLatentAnnotator,
    detection_score,
    extreme_latents,
    frequency_matched,
    fuzzing_score,
    has_labels,
    label_categories,
    wilson_interval,
)
from tests.reasoning.snippet_cases import PLAIN, WAITS, snippet

BUTS = [snippet("it is 4 . But no", at=4) for _ in range(4)]


def test_words_at_or_right_after_the_token_win():
    found = LexicalLatentAnnotator(PLAIN).annotate(5, WAITS)  # two at "Wait", two just before it
    assert (found.latent, found.category, found.score) == (5, "self-reflection", 1.0)


def test_words_elsewhere_in_the_snippet_do_not_count():
    far = [snippet("it is 4 . Wait , check that", at=at) for at in (0, 1, 2, 5)]
    assert LexicalLatentAnnotator(PLAIN).annotate(0, far).category is None


def test_two_categories_alike_give_none():
    assert LexicalLatentAnnotator(PLAIN).annotate(0, WAITS + BUTS).category is None


def test_the_score_is_corrected_for_how_often_the_words_stand_anywhere():
    random = PLAIN[:4] + WAITS  # half of random tokens are near the word
    found = LexicalLatentAnnotator(random).annotate(0, WAITS[:3] + PLAIN[:1])
    assert found.score == pytest.approx((0.75 - 0.5) / (1 - 0.5))
    everywhere = LexicalLatentAnnotator(WAITS).annotate(0, WAITS)
    assert everywhere.category is None  # words that stand everywhere say nothing


def test_no_snippets_are_no_evidence():
    found = LexicalLatentAnnotator(PLAIN).annotate(0, [])
    assert found.category is None
    assert math.isnan(found.score)


def columns() -> dict[str, torch.Tensor]:
    nan = float("nan")
    return {
        "latent": torch.tensor([4, 9, 2]),
        "auroc/onset/deductive": torch.tensor([0.9, 0.6, nan]),
        "auroc/function/deductive/So": torch.tensor([0.5, 0.7, nan]),
        "auroc/function/deductive/Thus": torch.tensor([0.5, 0.9, nan]),
        "auroc/onset/contrastive": torch.tensor([0.85, 0.2, nan]),
    }


def test_labels_take_the_best_question_and_average_over_markers():
    annotator = LabelAnnotator(columns(), categories=("deductive", "contrastive"), threshold=0.75)
    found = {latent: annotator.annotate(latent) for latent in (4, 9, 2)}
    assert (found[4].category, found[4].score) == ("deductive", pytest.approx(0.9))
    assert (found[9].category, found[9].score) == ("deductive", pytest.approx(0.8))
    assert found[2].category is None
    assert math.isnan(found[2].score)
    strict = LabelAnnotator(columns(), categories=("deductive",), threshold=0.95)
    assert strict.annotate(4).category is None


def test_a_marker_that_never_occurs_does_not_cost_a_category_its_function():
    nan = torch.full((3,), float("nan"))
    with_nan = columns() | {"auroc/function/deductive/So": nan}
    found = LabelAnnotator(with_nan, categories=("deductive",), threshold=0.75).annotate(9)
    assert (found.category, found.score) == ("deductive", pytest.approx(0.9))
    assert "function" in found.explanation


def test_the_categories_of_labels_are_those_of_the_columns():
    own = {**columns(), "auroc/onset/proof": torch.zeros(3), "precision/onset/x": torch.zeros(3)}
    assert label_categories(own) == ("deductive", "contrastive", "proof")


def test_words_that_all_stand_everywhere_name_no_category():
    words = LexicalAnnotator({"wait": CategoryWords(phrases=("Wait",))})
    found = LexicalLatentAnnotator(WAITS, words=words).annotate(0, WAITS)
    assert found.category is None
    assert math.isnan(found.score)


def test_labels_say_what_is_missing():
    assert has_labels(columns())
    assert not has_labels({"auroc/onset/deductive": torch.zeros(1)})
    with pytest.raises(ValueError, match="threshold"):
        LabelAnnotator(columns(), categories=("deductive",), threshold=0.5)
    with pytest.raises(ValueError, match="no question"):
        LabelAnnotator(columns(), categories=("haste",))
    with pytest.raises(KeyError, match="no latent 3"):
        LabelAnnotator(columns(), categories=("deductive",)).annotate(3)


def test_extreme_latents_are_the_ends_of_a_sort():
    nrn = torch.tensor([0.9, 0.1, float("nan"), 0.5, 0.99, 0.3, 0.0])
    fired = torch.tensor([True, True, True, True, False, True, True])
    found = extreme_latents(nrn, fired, n=2)
    assert (found.top.tolist(), found.bottom.tolist()) == ([0, 3], [6, 1])
    all_of_them = extreme_latents(nrn, fired, n=100)
    assert len(all_of_them.top) == len(all_of_them.bottom) == 2  # five fire; no latent at both ends


def test_equal_values_give_ends_without_a_common_latent():
    found = extreme_latents(torch.full((6,), 0.5), torch.ones(6, dtype=torch.bool), n=3)
    assert set(found.top.tolist()) | set(found.bottom.tolist()) == set(range(6))
    with pytest.raises(ValueError, match="two ends"):
        extreme_latents(torch.full((3,), 0.5), torch.tensor([True, False, False]))


def test_matches_are_near_in_frequency_and_never_the_latent_itself(generator):
    frequency = torch.logspace(-4, 0, 100, dtype=torch.float64)
    chosen = torch.tensor([10, 50])
    found = frequency_matched(
        frequency, chosen, torch.arange(100), generator=generator, n_matches=5, n_nearest=8
    )
    for latent, matches in zip(chosen.tolist(), found.tolist(), strict=True):
        assert len(set(matches)) == 5
        assert all(1 <= abs(match - latent) <= 4 for match in matches)


def test_matching_refuses_latents_that_never_fire_and_small_pools(generator):
    frequency = torch.tensor([0.1, 0.2, 0.0])
    with pytest.raises(ValueError, match="fire"):
        frequency_matched(frequency, torch.tensor([0]), torch.tensor([2]), generator=generator)
    with pytest.raises(ValueError, match="needs 4 matches"):
        frequency_matched(frequency, torch.tensor([0]), torch.tensor([1]), generator=generator)


def test_wilson_interval_solves_its_equation():
    for n_yes, n in ((0, 10), (3, 10), (10, 10), (70, 200)):
        for bound in wilson_interval(n_yes, n):
            distance = abs(n_yes / n - bound)
            assert distance == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / n), abs=1e-6)


def test_the_interval_of_balanced_accuracy_covers_as_it_says():
    generator = torch.Generator().manual_seed(3)
    truth, covered = 0.5 * (0.8 + 0.6), 0
    for _ in range(2000):
        right = [int((torch.rand(30, generator=generator) < p).sum()) for p in (0.8, 0.6)]
        score = BalancedAccuracy(n_true=30, n_true_right=right[0], n_false=30, n_false_right=right[1])
        low, high = score.interval
        covered += low <= truth <= high
    assert 0.93 < covered / 2000 < 0.98


def test_balanced_accuracy_without_one_kind_is_undefined():
    score = BalancedAccuracy(n_true=3, n_true_right=3, n_false=0, n_false_right=0)
    assert math.isnan(score.value)
    assert math.isnan(score.interval[0])


def named(category: str | None) -> Annotation:
    return Annotation(latent=0, category=category, score=1.0, explanation="")


def test_the_lexical_judge_knows_its_words_and_nothing_else(generator):
    judge = LexicalJudge()
    right = detection_score(
        judge, named("self-reflection"), activating=WAITS, non_activating=PLAIN, generator=generator
    )
    wrong = detection_score(
        judge, named("deductive"), activating=WAITS, non_activating=PLAIN, generator=generator
    )
    assert (right.value, wrong.value) == (1.0, 0.5)
    unnamed = detection_score(judge, named(None), activating=WAITS, non_activating=PLAIN, generator=generator)
    assert unnamed.n_unanswered == len(WAITS) + len(PLAIN)


def test_fuzzing_marks_the_firing_tokens_and_as_many_others(generator):
    test = [snippet("a b c d Wait e f g h i", at=4, active={4: 2.0, 9: 1.0}) for _ in range(20)]
    score = fuzzing_score(LexicalJudge(), named("self-reflection"), activating=test, generator=generator)
    assert (score.n_true, score.n_true_right, score.n_false) == (20, 20, 20)
    assert 8 <= score.n_false_right < 20  # two of eight others; one of them is just before the word
    full = [snippet("a b", at=0, active={0: 1.0, 1: 1.0})]
    assert fuzzing_score(LexicalJudge(), named("deductive"), activating=full, generator=generator).n_true == 0
