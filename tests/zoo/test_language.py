"""The generator's laws: what its text contains, what it never contains, and that the parser reads it back."""

import random
import re
from collections import Counter

import pytest

from crosscoders.models import load_model
from crosscoders.reasoning import CATEGORIES
from crosscoders.zoo.arithmetic import (
    Problem,
    Step,
    answer,
    is_allowed,
    is_held_out,
    sample_problem,
    slip_value,
    worked_steps,
)
from crosscoders.zoo.base_text import (
    DRILL,
    SOLUTION,
    STORY,
    write_base,
    write_drill,
    write_solution,
    write_story,
)
from crosscoders.zoo.parser import acts, final_answer, parse, reflections, to_text
from crosscoders.zoo.recipe import Architecture, documents
from crosscoders.zoo.text import FORMS, MARKERS
from crosscoders.zoo.traces import ACTS, P_SLIP, ROUTINE_REFLECTION_RATE, write_trace
from crosscoders.zoo.train import build_model
from crosscoders.zoo.vocabulary import END_OF_TEXT, UNKNOWN, build_tokenizer, encode, token_ids, vocabulary

N = 600


def texts(write, n=N, seed=5):
    rng = random.Random(seed)
    return [write(rng) for _ in range(n)]


def test_base_text_contains_every_word_of_the_vocabulary():
    seen = {index for text in texts(write_base, 3000) for index in text.ids}
    specials = {token_ids()[END_OF_TEXT], token_ids()[UNKNOWN]}
    assert {vocabulary()[i] for i in set(range(len(vocabulary()))) - seen - specials} == set()


@pytest.mark.parametrize("write", [write_story, write_solution], ids=["stories", "arithmetic"])
def test_every_marker_word_occurs_in_base_text_without_its_function(write):
    counts = Counter()
    for text in texts(write):
        counts.update(to_text([i]).strip() for i in text.ids)
        assert set(text.function) == {-1}
        assert not [act for act in acts(to_text(text.ids)) if act.category]
    assert min(counts[marker] for marker in MARKERS) > 0


def test_each_category_has_three_forms_that_are_drawn_alike():
    forms = Counter()
    for text in texts(write_trace, 3000):
        forms.update(text.form[i] for i in range(1, len(text)) if text.onset[i - 1] >= 0)
    for category in CATEGORIES:
        counts = [forms[MARKERS.index(marker)] for marker in FORMS[category]]
        assert len(counts) >= 3
        assert max(counts) < 1.25 * min(counts)


def test_training_text_never_asks_a_held_out_problem():
    for mixture in ("base", "distillation"):
        stream = documents(mixture, 11)
        for _ in range(1000):
            for asked in re.findall(r"What is (\d[^?]*)\?", to_text(next(stream).ids)):
                assert not is_held_out(tuple(map(int, re.findall(r"\d+", asked)))), asked


def test_drills_leave_held_out_pairs_out():
    for text in texts(write_drill, 300):
        for fact in to_text(text.ids).removeprefix(" Facts:").split("."):
            words = fact.split()
            if words:
                assert not is_held_out((int(words[0]), int(words[2])))


def test_split_ignores_the_order_of_operands_and_the_operators():
    rng = random.Random(0)
    for _ in range(200):
        problem = sample_problem(rng, held_out=True)
        shuffled = list(problem.operands)
        rng.shuffle(shuffled)
        assert Problem(tuple(shuffled), problem.operators).is_held_out


def test_answers_agree_with_python_and_steps_stay_in_range():
    rng = random.Random(1)
    for _ in range(500):
        problem = sample_problem(rng)
        assert answer(problem) == eval(problem.expression.replace("x", "*"))
        assert is_allowed(problem)
        assert all(0 <= step.result <= 999 for step in worked_steps(problem))
        assert all(0 <= operand <= 99 for operand in problem.operands)


def test_slip_is_an_operand_in_place_of_the_result():
    rng = random.Random(2)
    for _ in range(500):
        for step in worked_steps(sample_problem(rng)):
            slip = slip_value(rng, step)
            assert slip in (step.left, step.right)
            assert slip != step.result or step.left == step.right == step.result


def test_acts_follow_their_stated_probabilities():
    asked, happened = Counter(), Counter()
    for text in texts(write_trace, 1500):
        for onset, p in zip(text.onset, text.p_category, strict=True):
            if any(p):
                for index in range(len(CATEGORIES)):
                    asked[index, p[index]] += 1
                    happened[index, p[index]] += onset == index
    for key, n in asked.items():
        if n > 400:
            assert abs(happened[key] / n - key[1]) < 4 * (0.25 / n) ** 0.5, key


def test_every_situation_is_a_probability_distribution():
    assert all(abs(sum(table.values()) - 1) < 1e-12 for table in ACTS.values())
    assert all(ACTS["step", remain][CATEGORIES[0]] == ROUTINE_REFLECTION_RATE for remain in (True, False))


def test_after_a_full_stop_of_a_step_all_of_continuing_checking_and_switching_occur():
    followers = Counter()
    for text in texts(write_trace):
        words = to_text(text.ids)
        for act in acts(words):
            if act.category is None:
                followers[words[act.end :].split()[0].rstrip(",:")] += 1
    assert {"Then", "Next", "Wait", "Alternatively", "But", "Therefore"} <= set(followers)


def test_slips_are_marked_exactly_where_a_wrong_value_is_written():
    n_steps = n_slips = 0
    for text in texts(write_trace):
        for act in acts(to_text(text.ids)):
            if act.category is None:
                n_steps, n_slips = n_steps + 1, n_slips + (not act.is_right)
        wrong = "".join(to_text([i]) for i, slip in zip(text.ids, text.is_slip, strict=True) if slip).split()
        steps = [act for act in acts(to_text(text.ids)) if act.category is None]
        said = [str(act.step.result) for act in steps if act.step is not None and not act.is_right]
        assert wrong == said
    assert abs(n_slips / n_steps - P_SLIP) < 0.03


def test_traces_end_in_the_right_answer_however_many_slips():
    rng = random.Random(4)
    for _ in range(500):
        problem = sample_problem(rng)
        assert final_answer(write_trace(rng, problem=problem).ids) == answer(problem)


@pytest.mark.parametrize("write", [write_trace, write_base], ids=["traces", "base text"])
def test_parser_agrees_with_the_generator_on_every_token(write):
    for text in texts(write, 800, seed=9):
        parsed = parse(text.ids)
        for name in ("function", "form", "onset", "is_slip", "slip_pending"):
            assert getattr(parsed, name) == getattr(text, name), (name, to_text(text.ids))


def test_reflections_count_marker_and_check_clause_and_repeats_once():
    once = "Wait, let me check that: 2 + 3 = 5."
    assert reflections(encode(once)) == 1
    assert reflections(encode(" ".join([once] * 4))) == 1
    assert reflections(encode(f"{once} Hold on, is that right? 2 + 3 = 5.")) == 2
    assert reflections(encode("Wait, said Anna. Wait, let me check that:")) == 0


def test_tokenizer_splits_like_the_generator_and_loses_nothing():
    tokenizer = build_tokenizer()
    for text in texts(write_trace, 100) + texts(write_base, 100):
        words = to_text(text.ids).strip()
        assert tokenizer(words)["input_ids"] == text.ids
        assert tokenizer.decode(text.ids) == words


def test_word_outside_the_vocabulary_raises():
    with pytest.raises(ValueError, match="zebra"):
        encode("The zebra was red.")


def test_kinds_of_base_text_are_named_by_origin():
    assert {text.origin for text in texts(write_base, 100)} == {STORY, DRILL, SOLUTION}


def test_step_is_a_plain_record():
    assert Step(2, "+", 3, 5) == worked_steps(Problem((2, 3), ("+",)))[0]


def test_loaded_model_keeps_the_tokenizer_that_was_saved(tmp_path):
    build_model(Architecture(n_layers=1, d_model=16, d_mlp=16), seed=0).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    tokenizer = load_model(tmp_path, name="saved").tokenizer
    words = "Question: What is 23 + 4? Thoughts: Wait, let me check that:"
    assert tokenizer(words)["input_ids"] == list(encode(words))
    assert tokenizer.decode(list(encode(words))) == words
