"""Every public function, method and class says what it takes, gives and raises."""

import pytest

from tests.repo.docstring_law import Documented, documented, entries, raised_in, sections

DOCUMENTED = documented()


def test_public_docstrings_are_complete() -> None:
    faults = {name: found for name, each in DOCUMENTED.items() if (found := each.faults())}
    assert faults == {}


def test_the_law_covers_functions_methods_and_classes() -> None:
    for name in ("diff", "Crosscoder", "Crosscoder.encode", "RunConfig.to_dict", "metrics.l0", "TopK"):
        assert f"crosscoders.{name}" in DOCUMENTED
    assert len(DOCUMENTED) > 600
    assert "hook_name" in DOCUMENTED["crosscoders.RunConfig"].parameters
    assert DOCUMENTED["crosscoders.Crosscoder.fold"].has_result is False
    assert DOCUMENTED["crosscoders.Crosscoder.encode"].has_result is True


@pytest.mark.parametrize(
    ("taken_out", "fault"),
    [
        ("    a: One.\n", "no Args entry for a"),
        ("    b, c: Two more.\n", "no Args entry for b"),
        ("Returns:\n    A sum.\n\n", "no Returns"),
        ("    ValueError: Where it cannot.\n", "no Raises entry for ValueError"),
        ("Adds up.", "no summary that is a sentence"),
    ],
)
def test_each_missing_part_is_a_fault(taken_out: str, fault: str) -> None:
    whole = (
        "Adds up.\n\nArgs:\n    a: One.\n    b, c: Two more.\n\nReturns:\n    A sum.\n\n"
        "Raises:\n    ValueError: Where it cannot.\n"
    )
    parts = (("a", "b", "c"), True, frozenset({"ValueError"}))
    assert Documented("f", whole, (), *parts).faults() == []
    assert fault in Documented("f", whole.replace(taken_out, ""), (), *parts).faults()


def test_what_a_base_says_holds_for_the_override() -> None:
    base = "Base.\n\nArgs:\n    a: One.\n\nReturns:\n    It."
    assert Documented("C.f", "Own words.", (base,), ("a",), True, frozenset()).faults() == []


def test_entries_are_names_and_not_words_of_their_text() -> None:
    found = sections(
        "One.\n\nArgs:\n    a: First, of these:\n        nested: no entry.\n    *rest (int): Rest.\n"
    )
    assert entries(found["Args"]) == {"a", "rest"}


def test_only_errors_raised_by_the_body_are_asked_for() -> None:
    def fn(x: int) -> None:
        try:
            int("x")
        except ValueError as err:
            raise KeyError(x) from err
        if x:
            raise
        raise NotImplementedError

    assert raised_in(fn) == {"KeyError"}
