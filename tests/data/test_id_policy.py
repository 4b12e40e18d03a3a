"""Ids of different meaning: what is dropped, masked and replaced, and when a neutral token is none."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosscoders.errors import AdapterMismatchError
from crosscoders.models import IdPolicy, IdRule, resolve_policy
from tests.data.real_tokenizers import qwen_tokenizer, r1_tokenizer, r1_traces
from tests.data.toy_models import toy_tokenizer

CHANGED = tuple(range(151643, 151650))
FIM_PAD = 151662


def drop(*ids: int) -> IdRule:
    return IdRule(action="drop", token_ids=ids)


def mask(*ids: int) -> IdRule:
    return IdRule(action="mask", token_ids=ids)


def replace(*ids: int, source: str = "base", neutral: str | int = 30) -> IdRule:
    return IdRule(action="replace", token_ids=ids, source=source, neutral=neutral)


def from_plain(**reading: object) -> IdPolicy:
    return IdPolicy.from_dict({"rules": [{"action": "replace", "token_ids": [3], **reading}]})


def toy_pair(**swaps: tuple[int, int]) -> dict[str, object]:
    return {"base": toy_tokenizer(), "distilled": toy_tokenizer(**(swaps or {"swapped": (5, 9)}))}


def test_the_papers_pair_differs_in_exactly_seven_ids(data_file):
    pair = {"base": qwen_tokenizer(data_file), "distilled": r1_tokenizer(data_file)}
    assert resolve_policy("drop", pair) == IdPolicy(rules=(drop(*CHANGED),))
    assert resolve_policy("mask", pair) == IdPolicy(rules=(mask(*CHANGED),))
    with pytest.raises(AdapterMismatchError, match=r"7 token ids .*151643: .*id_policy='drop'"):
        resolve_policy(None, pair)


def test_real_traces_survive_reading_a_neutral_token_for_the_thinking_tags(data_file):
    pair = {"base": qwen_tokenizer(data_file), "distilled": r1_tokenizer(data_file)}
    rules = (drop(*CHANGED[:5]), replace(*CHANGED[5:], neutral="<|fim_pad|>"))
    policy = resolve_policy(IdPolicy(rules=rules), pair)
    assert policy is not None
    assert policy.rules[1].neutral == FIM_PAD
    texts = r1_traces(data_file)[:3]
    assert all(text.count("<think>") == text.count("</think>") == 1 for text in texts)
    for document in policy.drop_from([pair["distilled"](text)["input_ids"] for text in texts]):
        report = policy.verify_retokenised(torch.tensor([document]), pair["base"], "base")
        assert (report.n_rows, report.n_positions, report.n_rows_lost) == (1, 2, 0)


def test_a_neutral_token_that_merges_with_its_neighbors_is_refused(data_file):
    pair = {"base": qwen_tokenizer(data_file), "distilled": r1_tokenizer(data_file)}
    rules = (drop(*CHANGED[:5]), replace(*CHANGED[5:], neutral="\n"))
    with pytest.raises(AdapterMismatchError, match=r"neutral id 198 .* does not survive .*<\|fim_pad"):
        resolve_policy(IdPolicy(rules=rules), pair)


def test_rows_whose_replacement_does_not_survive_are_counted(data_file):
    tokenizer = qwen_tokenizer(data_file)
    newline, wait, double = 198, tokenizer("Wait")["input_ids"][0], tokenizer("\n\n")["input_ids"][0]
    policy = IdPolicy(rules=(replace(151648, neutral=newline),))
    rows = torch.tensor([[wait, 151648, wait], [wait, 151648, newline], [wait, newline, wait]])
    assert tokenizer("Wait\n\n")["input_ids"] == [wait, double]  # so the second row comes back shorter
    report = policy.verify_retokenised(rows, tokenizer, "base")
    assert (report.n_rows, report.n_rows_lost, report.n_positions, report.n_positions_lost) == (2, 1, 2, 2)


def test_a_row_that_was_broken_before_is_not_held_against_the_neutral_token(data_file):
    tokenizer = qwen_tokenizer(data_file)
    cut = tokenizer("\N{OLD PERSIAN SIGN A}")["input_ids"][0]  # the first bytes of a character
    rows = torch.tensor([[cut, 9707, 151648, 9707]])
    policy = IdPolicy(rules=(replace(151648, neutral=FIM_PAD),))
    assert policy.verify_retokenised(rows, tokenizer, "base").n_rows_lost == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(4, 39), min_size=1, max_size=9), min_size=1, max_size=6))
def test_dropping_takes_out_every_dropped_id_and_nothing_else(documents: list[list[int]]) -> None:
    policy = IdPolicy(rules=(drop(5, 9), mask(6)))
    expected = [kept for d in documents if (kept := [i for i in d if i not in (5, 9)])]
    assert policy.drop_from(documents) == expected
    as_arrays = policy.drop_from([np.array(d, dtype=np.int32) for d in documents])
    assert [d.tolist() for d in as_arrays] == expected
    assert all(d.dtype == np.int32 for d in as_arrays)


def test_ids_beyond_the_documents_dtype_drop_nothing():
    (kept,) = IdPolicy(rules=(drop(2**40, 5),)).drop_from([np.array([4, 5, 6], dtype=np.int32)])
    assert (kept.tolist(), kept.dtype) == ([4, 6], np.int32)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 39), min_size=4, max_size=4), min_size=1, max_size=5))
def test_each_source_reads_its_own_neutral_token_in_place_of_replaced_ids(rows: list[list[int]]) -> None:
    policy = IdPolicy(rules=(replace(5, 9, neutral=30), replace(9, source="null", neutral=31), mask(7)))
    tokens = torch.tensor(rows)
    base = [[30 if i in (5, 9) else i for i in row] for row in rows]
    null = [[31 if i == 9 else i for i in row] for row in rows]
    assert policy.tokens_for("base", tokens).tolist() == base
    assert policy.tokens_for("null", tokens).tolist() == null
    assert policy.tokens_for("distilled", tokens) is tokens
    assert (policy.excluded_ids, policy.drop_ids, policy.covered_ids) == ((5, 7, 9), (), (5, 7, 9))


def test_a_policy_survives_its_plain_form():
    policy = IdPolicy(rules=(drop(4, 3), mask(7), replace(5, neutral="<pad>")))
    assert IdPolicy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy
    assert policy.to_dict()["rules"][0] == {"action": "drop", "token_ids": [3, 4]}


def test_resolving_turns_the_neutral_text_into_its_id():
    policy = resolve_policy(IdPolicy(rules=(replace(5, 9, neutral="w12"),)), toy_pair())
    assert policy == IdPolicy(rules=(replace(5, 9, neutral=12),))


def test_ids_that_one_tokenizer_lacks_count_as_changed():
    larger = toy_tokenizer()
    larger.add_tokens(["more"])
    assert resolve_policy("drop", {"base": toy_tokenizer(), "distilled": larger}) == IdPolicy(
        rules=(drop(40),)
    )
    with pytest.raises(AdapterMismatchError, match="40: None / 'more'"):
        resolve_policy(IdPolicy(rules=(drop(5),)), {"base": toy_tokenizer(), "distilled": larger})


def test_any_two_of_three_sources_may_differ():
    three = {"a": toy_tokenizer(), "b": toy_tokenizer(swapped=(5, 9)), "c": toy_tokenizer(swapped=(9, 12))}
    assert resolve_policy("mask", three) == IdPolicy(rules=(mask(5, 9, 12),))


def test_tokenizers_that_agree_leave_nothing_to_do():
    same = {"base": toy_tokenizer(), "distilled": toy_tokenizer(), "null": None}
    assert resolve_policy("drop", same) == IdPolicy()
    assert resolve_policy(None, same) is None


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (IdPolicy(rules=(drop(5),)), "leaves 1 token ids open.*9: 'w9' / 'w5'"),
        (IdPolicy(rules=(replace(5, 9, neutral=9),)), r"neutral 9 .* differs \('w9' / 'w5'\)"),
        (IdPolicy(rules=(replace(5, 9, neutral=77),)), "neutral 77 .* does not exist"),
        (IdPolicy(rules=(replace(5, 9, neutral="w4 w6"),)), "exactly one token of source 'base'"),
        (IdPolicy(rules=(replace(5, 9, neutral="word"),)), "exactly one token of source 'base'"),
        (IdPolicy(rules=(replace(5, 9, source="bse"),)), r"source 'bse'.*\['base', 'distilled'\]"),
        (IdPolicy(rules=(drop(5, 9, 30), replace(11, neutral=30))), "neutral 30 .* has a rule itself"),
    ],
)
def test_a_policy_that_does_not_fit_the_tokenizers_raises(policy: IdPolicy, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_policy(policy, toy_pair())


def test_dropping_without_two_tokenizers_to_compare_raises():
    with pytest.raises(ValueError, match=r"tokenizers of two sources.*got 1"):
        resolve_policy("drop", {"base": toy_tokenizer(), "distilled": None})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: drop(), "token_ids must be ids"),
        (lambda: mask(-1), "token_ids must be ids"),
        (
            lambda: IdPolicy.from_dict({"rules": [{"action": "keep", "token_ids": [1]}]}),
            "action must be one of",
        ),
        (lambda: IdRule(action="replace", token_ids=(1,)), "needs source= .* neutral="),
        (lambda: IdRule(action="mask", token_ids=(1,), source="base"), "belong to 'replace'"),
        (lambda: IdPolicy(rules=(drop(3), mask(3, 4))), "id 3 stands in two rules"),
        (lambda: IdPolicy(rules=(replace(3), replace(3))), "id 3 stands in two rules"),
        (
            lambda: IdPolicy(rules=(replace(3), replace(3, source="null"), replace(3, source="null"))),
            "id 3 stands in two rules",
        ),
        (lambda: replace(3, neutral=True), "neutral= must be text or an id"),
        (lambda: replace(3, neutral=-1), "neutral= must be text or an id"),
        (lambda: from_plain(source="base", neutral=1.5), "neutral= must be text or an id"),
        (lambda: from_plain(source=7, neutral=1), "source= must be a name"),
        (lambda: IdPolicy.from_dict({"rules": [], "x": 1}), "one key 'rules'"),
        (lambda: IdPolicy.from_dict({"rules": [{"action": "drop"}]}), "rule 0 must be a table"),
        (
            lambda: IdPolicy.from_dict({"rules": [{"action": "drop", "token_ids": 5}]}),
            "rule 0 must be a table",
        ),
    ],
)
def test_rules_that_say_nothing_or_contradict_each_other_raise(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_policy_that_was_not_resolved_replaces_nothing_silently():
    policy = IdPolicy(rules=(replace(5, neutral="w12"),))
    with pytest.raises(ValueError, match="'w12' is text; use the policy that resolve_policy returns"):
        policy.tokens_for("base", torch.tensor([[5]]))
