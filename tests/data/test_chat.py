"""Chat templates: what they do to the reasoning, and how a conversation keeps it."""

import json

import pytest

from crosscoders.models import check_chat_template, render_chat
from crosscoders.models.chat import ChatTemplate
from tests.data.real_tokenizers import qwen_tokenizer, r1_tokenizer
from tests.data.toy_models import toy_tokenizer

BOS, USER, ASSISTANT, EOS = (
    f"<\uff5c{name}\uff5c>"
    for name in ("begin\u2581of\u2581sentence", "User", "Assistant", "end\u2581of\u2581sentence")
)
THOUGHT = "<think>\nOkay, 2 and 3.\n\nThat is 5.\n</think>\n\nIt is 5."
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 + 3?"},
    {"role": "assistant", "content": THOUGHT},
]
TWO_ROUNDS = [
    *TURNS,
    {"role": "user", "content": "And 4 + 4?"},
    {"role": "assistant", "content": THOUGHT.replace("5", "8")},
]


def with_template(template: str):
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def qwen3(data_file):
    config = json.loads(data_file("tokenizers/qwen3/tokenizer_config.json").read_text(encoding="utf-8"))
    return with_template(config["chat_template"])


def r1_of_february(data_file):
    """Derived: the change of 9 February 2025, which ends the generation prompt in `<think>`."""
    template = r1_tokenizer(data_file).chat_template
    changed = template.replace(
        f"{{{{'{ASSISTANT}'}}}}{{% endif %}}", f"{{{{'{ASSISTANT}<think>\\n'}}}}{{% endif %}}"
    )
    assert changed != template
    tokenizer = with_template(changed)
    tokenizer.bos_token = BOS
    return tokenizer


def test_the_real_r1_template_deletes_the_reasoning(data_file):
    assert check_chat_template(r1_tokenizer(data_file)) == ChatTemplate(
        deletes_reasoning=True, deletes_earlier_reasoning=True, appends_think=False
    )
    assert check_chat_template(r1_of_february(data_file)).appends_think


def test_the_real_qwen_templates_keep_the_last_reasoning(data_file):
    assert check_chat_template(qwen_tokenizer(data_file)) == ChatTemplate(
        deletes_reasoning=False, deletes_earlier_reasoning=False, appends_think=False
    )
    assert check_chat_template(qwen3(data_file)) == ChatTemplate(
        deletes_reasoning=False, deletes_earlier_reasoning=True, appends_think=False
    )


@pytest.mark.parametrize("tokenizer_of", [r1_tokenizer, r1_of_february])
def test_r1_conversations_keep_every_word(data_file, tokenizer_of):
    text = render_chat(TWO_ROUNDS, tokenizer_of(data_file))
    second = THOUGHT.replace("5", "8")
    assert text == (
        f"{BOS}Be brief.{USER}2 + 3?{ASSISTANT}{THOUGHT}{EOS}{USER}And 4 + 4?{ASSISTANT}{second}{EOS}"
    )


def test_no_reasoning_token_is_lost_on_the_way_to_ids(data_file):
    tokenizer = r1_tokenizer(data_file)
    ids = tokenizer(render_chat(TURNS, tokenizer), add_special_tokens=False)["input_ids"]
    reasoning = tokenizer(THOUGHT, add_special_tokens=False)["input_ids"]
    assert ids[-len(reasoning) - 1 :] == [*reasoning, tokenizer.eos_token_id]
    assert ids.count(151648) == ids.count(151649) == 1
    assert ids[0] == 151646
    assert (
        tokenizer.apply_chat_template(TURNS, return_dict=False).count(151649) == 0
    )  # what it would have been


def test_without_leave_to_keep_it_reasoning_that_would_be_lost_raises(data_file):
    with pytest.raises(ValueError, match=r"assistant turn 2, 4 .*keep_reasoning=True"):
        render_chat(TWO_ROUNDS, r1_tokenizer(data_file), keep_reasoning=False)
    with pytest.raises(ValueError, match="assistant turn 2 "):
        render_chat(TWO_ROUNDS, qwen3(data_file), keep_reasoning=False)


def test_a_template_that_keeps_the_reasoning_is_used_as_it_is(data_file):
    for tokenizer, turns in ((qwen_tokenizer(data_file), TWO_ROUNDS), (qwen3(data_file), TURNS)):
        plain = tokenizer.apply_chat_template(turns, tokenize=False)
        assert render_chat(turns, tokenizer) == render_chat(turns, tokenizer, keep_reasoning=False) == plain


def test_turns_without_reasoning_are_the_templates_own(data_file):
    tokenizer = r1_tokenizer(data_file)
    turns = [*TURNS[:2], {"role": "assistant", "content": "It is 5."}]
    plain = tokenizer.apply_chat_template(turns, tokenize=False)
    assert render_chat(turns, tokenizer, keep_reasoning=False) == plain


def test_earlier_reasoning_that_qwen3_deletes_is_kept(data_file):
    text = render_chat(TWO_ROUNDS, qwen3(data_file))
    assert text.count(THOUGHT) == text.count(THOUGHT.replace("5", "8")) == 1
    assert text.count("<think>") == 2
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 3?<|im_end|>\n")
    assert text.endswith("It is 8.<|im_end|>\n")


def test_a_conversation_that_ends_with_the_user_keeps_its_reasoning(data_file):
    text = render_chat(TWO_ROUNDS[:4], r1_tokenizer(data_file))
    assert text == f"{BOS}Be brief.{USER}2 + 3?{ASSISTANT}{THOUGHT}{EOS}{USER}And 4 + 4?"


def test_a_thought_that_leaves_its_opening_to_the_template_gets_it(data_file):
    half = THOUGHT.removeprefix("<think>\n")
    turns = [*TURNS[:2], {"role": "assistant", "content": half}]
    for tokenizer in (r1_tokenizer(data_file), r1_of_february(data_file)):
        assert render_chat(turns, tokenizer).endswith(f"{ASSISTANT}{THOUGHT}{EOS}")


def test_reasoning_under_its_own_key_goes_before_the_content(data_file):
    split = {"role": "assistant", "content": "It is 5.", "reasoning_content": "Okay, 2 and 3.\n\nThat is 5."}
    turns = [*TURNS[:2], split]
    assert render_chat(turns, r1_tokenizer(data_file)) == render_chat(TURNS, r1_tokenizer(data_file))


def test_thoughts_that_quote_a_closing_tag_stay_whole(data_file):
    quoting = THOUGHT.replace("That is 5.", "The tag </think> ends it.")
    turns = [*TURNS[:2], {"role": "assistant", "content": quoting}]
    for tokenizer in (r1_tokenizer(data_file), qwen3(data_file)):
        assert render_chat(turns, tokenizer).count(quoting) == 1


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "no messages"),
        ([{"role": "user", "content": None}], "message 0 must have the texts role and content"),
        ([{"role": "human", "content": "Hi"}], "role of message 0 .* 'human'"),
        ([{"role": "assistant", "content": "5", "thinking": "2 + 3"}], "other keys would be lost"),
    ],
)
def test_messages_that_a_template_would_lose_raise(turns, message):
    with pytest.raises(ValueError, match=message):
        render_chat(turns, with_template("{% for m in messages %}{{ m['content'] }}{% endfor %}"))


def test_a_turn_that_the_template_leaves_out_raises(data_file):
    """R1's keeps the last of several system texts."""
    tokenizer = r1_tokenizer(data_file)
    for answer in (THOUGHT, "It is 5."):
        turns = [*TURNS[:2], {"role": "system", "content": "Be long."}, {**TURNS[2], "content": answer}]
        with pytest.raises(ValueError, match=r"leaves out message 0 \('system'\)"):
            render_chat(turns, tokenizer)


def test_a_user_who_writes_the_mark_does_not_lose_the_reasoning(data_file):
    tokenizer = r1_tokenizer(data_file)
    for mark in ("crosscoders-turn-1-", "crosscoders-turn-2-", "crosscoders-turn-2-x-"):
        turns = [TURNS[0], {"role": "user", "content": f"What is {mark}?"}, TURNS[2]]
        assert render_chat(turns, tokenizer).endswith(f"{USER}What is {mark}?{ASSISTANT}{THOUGHT}{EOS}")


def test_a_conversation_that_the_assistant_begins_keeps_its_reasoning(data_file):
    assert render_chat(TURNS[2:], r1_tokenizer(data_file)) == f"{BOS}{ASSISTANT}{THOUGHT}{EOS}"


def test_templates_that_are_missing_broken_or_repeat_themselves_raise():
    with pytest.raises(ValueError, match=r"none; set tokenizer\.chat_template"):
        check_chat_template(toy_tokenizer())
    with pytest.raises(ValueError, match=r"\['system', 'user', 'assistant'\] \(no system\)"):
        render_chat(TURNS, with_template("{{ raise_exception('no system') }}"))
    lossy = "{% for m in messages %}{{ m['content'].split('</think>')[-1] * 2 }}{% endfor %}"
    with pytest.raises(ValueError, match="content of message 2 2 times"):
        render_chat(TURNS, with_template(lossy))


def test_reasoning_that_stands_elsewhere_too_counts_as_deleted(data_file):
    echo = {"role": "assistant", "content": "<think>\nIt is 5.\n</think>\n\nIt is 5."}
    with pytest.raises(ValueError, match="assistant turn 2 "):
        render_chat([*TURNS[:2], echo], r1_tokenizer(data_file), keep_reasoning=False)
    assert echo["content"] in render_chat([*TURNS[:2], echo], r1_tokenizer(data_file))
