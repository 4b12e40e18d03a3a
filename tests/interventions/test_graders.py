"""Graders: what counts as the same number or result, and how they do on real references and traces."""

import json
import random
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from crosscoders.interventions.sweeps.graders import (
    BoxedGrader,
    GSM8KGrader,
    final_number,
    last_boxed,
    same_result,
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("... #### 42", 42),
        ("first #### 1\nthen\n#### 1,080", 1080),
        ("#### Step 2\nSo there are 7 apples", 7),
        (r"We get \boxed{12}. Check: 3 + 9 = 12, not 13", 12),
        (r"\boxed{x = 5}", 5),
        ("The answer is $18. She has 3 dogs.", 18),
        ("The answer is 3 * 4 = 12.", 12),
        ("The answer is clear. We need 5 + 6 = 11", 11),
        ("The answer is 4.\nNo: the answer is 5.", 5),
        ("She pays 18 + 24 = $42.00 in all.", 42),
        ("it is -7", -7),
        ("it is -$7.50.", Fraction(-15, 2)),
        ("it is $-7", -7),
        ("it is \u22127", -7),
        ("10-5", 5),
        ("about 1,234,567 people.", 1234567),
        ("roughly .5 of it", Fraction(1, 2)),
        ("rows 1,2", 2),
        (r"costs \$3{,}000", 3000),
        ("Interest of 20%", 20),
        ("no number at all", None),
    ],
)
def test_the_final_number_of_a_text(text: str, number: Fraction | int | None) -> None:
    assert final_number(text) == number


def test_numbers_compare_exactly_however_they_are_written() -> None:
    rng, grade = random.Random(0), GSM8KGrader().grade
    for _ in range(300):
        cents = rng.randint(-(10**8), 10**8)
        sign, euros, rest = "-" if cents < 0 else "", abs(cents) // 100, abs(cents) % 100
        written = [
            f"{sign}{euros}.{rest:02d}",
            f"{sign}${euros:,}.{rest:02d}0",
            f"{sign}{euros:,}.{rest:02d}.",
        ]
        for answer in written:
            assert grade(f"So she has 3 times 7, {answer} dollars", f"#### {written[0]}")
        assert not grade(f"It is {sign}{euros + 1}.{rest:02d}", written[0])


def test_a_reference_without_number_raises() -> None:
    with pytest.raises(ValueError, match="holds no number"):
        GSM8KGrader().grade("42", "none")


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_gsm8k_reference_grades_its_own_solution_right(
    data_file: Callable[[str], Path], split: str
) -> None:
    lines = data_file(f"gsm8k/{split}.jsonl").read_text(encoding="utf-8").splitlines()
    solutions = [json.loads(line)["answer"] for line in lines]
    results = [solution.rsplit("####", 1)[1].strip() for solution in solutions]
    assert len(solutions) == {"train": 7473, "test": 1319}[split]
    grade = GSM8KGrader().grade
    for solution, result in zip(solutions, results, strict=True):
        assert grade(solution, result)
        assert grade(f"The answer is ${result}.", solution)
        assert grade(f"5 more than before, so {result} of them.", solution)
        assert not grade(f"#### {int(result.replace(',', '')) + 1}", solution)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\dfrac{1}{2}", "0.5"),
        (r"\frac12", "1/2"),
        (r"\tfrac{1}{2}", ".50"),
        (r"-\frac{1} { 4027}", r"-\dfrac{1}{4027}"),
        (r"\frac{-5}{12}", r"-\frac{5}{12}"),
        (r"1\frac{1}{2}", r"\frac{3}{2}"),
        (r"10,\!080", "10080"),
        (r"\$6.17", "6.17"),
        (r"90^\circ", "90"),
        (r"90^{\circ}", r"90\text{ degrees}"),
        (r"5\text{ cm}^2", "5"),
        (r"\frac{1}{2}\text{ cm}", "0.5"),
        ("12 square units", "12"),
        (r"20\%", "20"),
        (r"\left(1, \frac12\right)", "(1,0.5)"),
        (r"\text{Evelyn}", "Evelyn"),
        ("x = 5", "5"),
        (r"\sqrt2", r"\sqrt{2}"),
        (r"2\sqrt{3} + 1", r"2\sqrt{3}+1"),
        ("\u22123", "-3"),
        ("7.", "7"),
    ],
)
def test_results_are_the_same_up_to_notation(one: str, other: str) -> None:
    assert same_result(one, other)
    assert same_result(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\frac{1}{2}", r"\frac{2}{1}"),
        ("0.333", r"\frac{1}{3}"),
        ("-3", "3"),
        ("5x", "5"),
        ("5 or 6", "5"),
        ("2xy", "2"),
        ("2 xy", "2"),
        ("(1,2)", "(2,1)"),
        ("(1,2)", "[1,2]"),
        ("(1,2)", "(1,2,3)"),
        (r"2\pi", "2"),
        (r"\frac{1}{0}", "0"),
        (r"\sqrt{2}", "2"),
        ("1,000", "1"),
    ],
)
def test_other_results_differ(one: str, other: str) -> None:
    assert not same_result(one, other)
    assert not same_result(other, one)


def test_long_answers_are_read_in_no_time() -> None:
    """Answers that a pattern could try in exponentially many ways: all of them take well under a second."""
    started = time.process_time()
    for piece in ("a", "5 ab ", "\\frac", "{", "1,000", "- ", "\\text{a", "\\boxed{", "answer is "):
        for end in ("", "!", "}"):
            same_result("5 " + piece * 1000 + end, "5")
            final_number(piece * 1000 + end)
    assert time.process_time() - started < 5


def test_the_last_box_that_closes_counts() -> None:
    assert last_boxed(r"\boxed{1}, no: \boxed{\frac{1}{\sqrt{2}}} so") == r"\frac{1}{\sqrt{2}}"
    assert last_boxed(r"\boxed{1} and then \boxed{\frac{1}{2") == "1"
    assert last_boxed(r"\boxed {\{1, 2\}}") == r"\{1, 2\}"
    assert last_boxed("no box") is None
    assert not BoxedGrader().grade("the answer is 5", "5")
    assert BoxedGrader().grade(r"\boxed{5}", r"... so $x=\boxed{5}$ percent.")
    with pytest.raises(ValueError, match="reference is empty"):
        BoxedGrader().grade(r"\boxed{5}", " ")


def test_nothing_is_evaluated() -> None:
    assert not same_result("__import__('os').getcwd()", "1")
    assert not same_result("2**2", "4")
    assert not same_result("9" * 400 + "e9999999", "1")


def test_real_traces_of_math_problems_are_graded_as_tagged(data_file: Callable[[str], Path]) -> None:
    folder, right = data_file("thought_anchors_r1_14b"), {}
    for kind in ("correct", "incorrect"):
        paths = sorted((folder / f"{kind}_base_solution").glob("*/base_solution.json"))
        assert len(paths) == 10
        for path in paths:
            trace = json.loads(path.read_text(encoding="utf-8"))["solution"]
            problem = json.loads((path.parent / "problem.json").read_text(encoding="utf-8"))
            for reference in ("gt_answer", "gt_solution"):
                is_right = BoxedGrader().grade(trace, problem[reference])
                right[kind, reference] = right.get((kind, reference), 0) + is_right
    assert right == {
        ("correct", "gt_answer"): 10,
        ("correct", "gt_solution"): 10,
        ("incorrect", "gt_answer"): 0,
        ("incorrect", "gt_solution"): 0,
    }
