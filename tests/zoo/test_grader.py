"""The bundled pair's grader: right exactly where the parser reads the right answer."""

import random

import pytest

from crosscoders.zoo.arithmetic import answer
from crosscoders.zoo.base_text import write_solution
from crosscoders.zoo.grader import ArithmeticGrader
from crosscoders.zoo.measure import held_out_problems
from crosscoders.zoo.parser import final_answer, stated_answer, to_text
from crosscoders.zoo.traces import write_trace
from crosscoders.zoo.vocabulary import build_tokenizer, encode


def test_written_texts_grade_as_the_parser_reads_them() -> None:
    rng, tokenizer, grade = random.Random(0), build_tokenizer(), ArithmeticGrader().grade
    for write in (write_solution, write_trace):
        for _ in range(100):
            ids = write(rng).ids
            wanted = final_answer(ids)
            assert wanted is not None
            for text in (to_text(ids), tokenizer.decode(ids)):
                assert stated_answer(text) == wanted
                assert grade(text, str(wanted))
                assert grade(text, text)
                assert not grade(text, str(wanted + 1))


def test_the_last_stated_answer_counts() -> None:
    problem = held_out_problems(1, seed=0)[0]
    reference, grade = str(answer(problem)), ArithmeticGrader().grade
    assert grade(f"Answer: 1. Wait, Answer: {reference}.", reference)
    assert not grade(f"Answer: {reference}. Answer: 1{reference}.", reference)
    assert not grade(f"so it is {reference}", reference)
    assert not grade("", reference)
    assert stated_answer(to_text(encode("Answer: 42."))) == 42
    with pytest.raises(ValueError, match="gives no value"):
        grade("Answer: 4.", "four")
