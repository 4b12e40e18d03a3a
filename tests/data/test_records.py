"""Documents one at a time: formats told apart, markers converted, nothing read ahead or lost."""

import gzip
import io
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosscoders.models import openthoughts_messages, read_texts, render_chat, stream_texts
from crosscoders.models.json_stream import json_list
from tests.data.real_tokenizers import r1_tokenizer
from tests.data.toy_models import toy_tokenizer

ANSWER = (
    "<|begin_of_thought|>\n\nOkay, 2 and 3.\n\nThat is 5.\n\n<|end_of_thought|>\n\n"
    "<|begin_of_solution|>\n\nIt is 5.\n\n<|end_of_solution|>"
)
CONVERTED = "<think>\nOkay, 2 and 3.\n\nThat is 5.\n</think>\n\nIt is 5."
OPENTHOUGHTS = {
    "system": "Think first.",
    "conversations": [{"from": "user", "value": "2 + 3?"}, {"from": "assistant", "value": ANSWER}],
}
CHAT = {
    "messages": [
        {"role": "system", "content": "Think first."},
        {"role": "user", "content": "2 + 3?"},
        {"role": "assistant", "content": CONVERTED},
    ]
}
TEXT = {"text": "one\ntwo", "id": 1}


def written(folder: Path, name: str, records: list[Any]) -> Path:
    as_list = json.dumps(records, indent=1)
    content = as_list if ".json" in name and ".jsonl" not in name else "\n".join(map(json.dumps, records))
    opened = gzip.open if name.endswith(".gz") else open
    with opened(folder / name, "wt", encoding="utf-8") as file:
        file.write(content)
    return folder / name


def chatty_tokenizer():
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    return tokenizer


def assistant_says(value: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": "2 + 3?"}, {"from": "gpt", "value": value}]}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz"])
def test_every_kind_of_file_gives_the_same_documents(tmp_path, name):
    path = written(tmp_path, name, [TEXT, {"text": "three \u2028 lines"}])
    assert list(stream_texts(path)) == ["one\ntwo", "three \u2028 lines"]
    assert read_texts(str(path)) == ["one\ntwo", "three \u2028 lines"]


def test_blocks_of_a_text_file_are_its_documents(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\n \n\nthree\x0c\n\nfour\u2028five\n", encoding="utf-8")
    assert list(stream_texts(tmp_path / "a.txt")) == ["one\ntwo", "three", "four\nfive"]


def test_thought_markers_become_thinking_tags():
    assert openthoughts_messages(OPENTHOUGHTS) == CHAT["messages"]
    plain = ANSWER.replace("<|begin_of_solution|>", "").replace("<|end_of_solution|>", "")
    for value in (ANSWER, plain, f" {ANSWER}\n", CONVERTED):
        assert openthoughts_messages(assistant_says(value))[1] == {"role": "assistant", "content": CONVERTED}


@pytest.mark.parametrize(
    "value",
    [
        ANSWER.replace("<|begin_of_thought|>", ""),
        ANSWER.replace("<|end_of_thought|>", ""),
        ANSWER.replace("<|end_of_solution|>", ""),
        ANSWER + ANSWER,
        "Well. " + ANSWER,
        ANSWER + " So there.",
        "<|end_of_thought|> 5 <|begin_of_thought|> 5",
        "<|begin_of_thought|> \n <|end_of_thought|> 5",
        "<|begin_of_thought|> five <|end_of_thought|> ",
        "<|begin_of_solution|> 5 <|end_of_solution|>",
    ],
)
def test_malformed_markers_raise_naming_the_record(tmp_path, value):
    path = written(tmp_path, "a.jsonl", [OPENTHOUGHTS, assistant_says(value)])
    texts = stream_texts(path, tokenizer=chatty_tokenizer())
    assert "It is 5." in next(texts)
    with pytest.raises(ValueError, match=r"a\.jsonl:2: turn 1: expected <\|begin_of_thought\|>"):
        next(texts)


def test_openthoughts_and_chat_records_render_alike_with_the_real_template(tmp_path, data_file):
    tokenizer = r1_tokenizer(data_file)
    paths = [written(tmp_path, f"{i}.jsonl", [record]) for i, record in enumerate((OPENTHOUGHTS, CHAT))]
    (thoughts,), (chat,) = (list(stream_texts(path, tokenizer=tokenizer)) for path in paths)
    assert thoughts == chat
    assert thoughts.count(CONVERTED) == 1
    with pytest.raises(ValueError, match=r"0\.jsonl:1: .*keep_reasoning=True"):
        list(stream_texts(paths[0], tokenizer=tokenizer, keep_reasoning=False))


def test_a_document_does_not_start_with_two_begin_tokens(tmp_path, data_file):
    tokenizer = r1_tokenizer(data_file)
    (text,) = stream_texts(written(tmp_path, "a.jsonl", [CHAT]), tokenizer=tokenizer)
    whole = render_chat(CHAT["messages"], tokenizer)
    assert tokenizer(text)["input_ids"] == tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert tokenizer(text)["input_ids"].count(tokenizer.bos_token_id) == 1


def test_only_as_many_records_are_read_as_documents_are_asked_for(tmp_path):
    def endless() -> Iterator[dict[str, str]]:
        at = 0
        while True:
            yield {"text": f"w{at}"}
            at += 1

    texts = stream_texts(endless())
    assert [next(texts) for _ in range(3)] == ["w0", "w1", "w2"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.txt"])
def test_a_large_file_is_never_in_memory_as_a_whole(tmp_path, name):
    if name == "a.txt":
        (tmp_path / name).write_text("\n\n".join("word " * 200 for _ in range(6_000)))
    else:
        written(tmp_path, name, [{"text": "word " * 200}] * 6_000)  # 6 MB
    tracemalloc.start()
    n_characters = sum(len(text) for text in stream_texts(tmp_path / name))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_characters >= 5.9e6
    assert peak < 4e6


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(values=st.lists(VALUES, max_size=5), indent=st.none() | st.just(2), is_ascii=st.booleans())
def test_a_list_read_through_a_small_window_is_the_list(values, indent, is_ascii):
    class Slow(io.StringIO):
        """Gives three characters at a time, whatever was asked for."""

        def read(self, size=-1):
            return super().read(3)

    file = Slow(json.dumps(values, indent=indent, ensure_ascii=is_ascii))
    assert [value for _, value in json_list(file, Path("a.json"))] == values


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "x"}', "expected a list of records"),
        ("", "expected a list of records"),
        ('[{"text": "x"}, {"text": }]', "record 1 is not JSON"),
        ('[{"text": "x"}', "',' or ']' before record 1, got 'the end of the file'"),
        ('[{"text": "x"} {"text": "y"}]', "',' or ']' before record 1"),
        ('[{"text": "x"}, {"text": "y', "record 1 is not JSON"),
        ('[{"text": "x"}] more', "expected nothing after the list of 1 records"),
        ("[]", "holds no documents"),
        ('[{"text": "x"}, {"text": ' + "5" * 40 + ', "a" 1}, ' + '"y",' * 50, "record 1 is not JSON"),
    ],
)
def test_damaged_json_lists_raise(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        list(stream_texts(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([TEXT, CHAT], r'a.jsonl:2 has no text; each text record needs "text"'),
        ([CHAT, OPENTHOUGHTS], 'a.jsonl:2 .* each chat record needs "messages"'),
        ([{**TEXT, **CHAT}], r"a.jsonl:1 .*expected one of the keys.*pass format="),
        ([{"content": "x"}], r"a.jsonl:1 .*got \['content'\]"),
        (["x"], "a.jsonl:1 .*got str"),
        ([{"messages": "x"}], 'a.jsonl:1: "messages" must be a list'),
        ([{"messages": [{"role": "user"}]}], "a.jsonl:1: render_chat: message 0"),
        ([{"conversations": []}], 'a.jsonl:1: "conversations" must be a list of turns'),
        ([{"conversations": [{"from": "bot", "value": "x"}]}], "a.jsonl:1: .*turn 0 .* 'bot'"),
        ([{"conversations": [{"from": "user", "value": ""}]}], "a.jsonl:1: turn 0 has no text"),
    ],
)
def test_records_of_another_kind_raise_naming_the_record(tmp_path, records, message):
    path = written(tmp_path, "a.jsonl", records)
    with pytest.raises(ValueError, match=message):
        list(stream_texts(path, tokenizer=chatty_tokenizer()))


def test_a_named_format_settles_what_two_keys_leave_open(tmp_path):
    path = written(tmp_path, "a.jsonl", [{**TEXT, **CHAT}])
    assert list(stream_texts(path, format="text")) == ["one\ntwo"]
    (chat,) = stream_texts(path, format="chat", tokenizer=chatty_tokenizer())
    assert chat.startswith("[system] Think first.\n[user] 2 + 3?")
    with pytest.raises(ValueError, match="pass tokenizer="):
        list(stream_texts(path, format="chat"))
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(ValueError, match=r"a \.txt file holds plain text"):
        list(stream_texts(tmp_path / "a.txt", format="chat"))


def test_files_that_are_cut_or_no_text_raise(tmp_path):
    packed = written(tmp_path, "a.jsonl.gz", [TEXT] * 50).read_bytes()
    for name, content in (("b.jsonl.gz", packed[:-20]), ("c.jsonl.gz", b"{}"), ("d.txt", b"\xff\xfe one")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: not UTF-8 text, or a damaged"):
            list(stream_texts(tmp_path / name))


@pytest.mark.parametrize(("name", "packed"), [("a.jsonl", False), ("a.json", True), ("a.txt", False)])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, name, packed):
    content = {"a.jsonl": '{"text": "one"}\n', "a.json": '[{"text": "one"}]', "a.txt": "one\n"}[name]
    path = tmp_path / f"{name}{'.gz' if packed else ''}"
    path.write_bytes((gzip.compress if packed else bytes)(content.encode("utf-8-sig")))
    assert list(stream_texts(path)) == ["one"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("value", ["[" * 100_000 + "]" * 100_000, "9" * 5_000], ids=["nested", "long number"])
def test_values_that_python_cannot_hold_raise_naming_the_record(tmp_path, name, value):
    records = ['{"text": "one"}', f'{{"text": "two", "more": {value}}}']
    joined = "\n".join(records) if name == "a.jsonl" else f"[{','.join(records)}]"
    (tmp_path / name).write_text(joined)
    with pytest.raises(ValueError, match=r"a\.json(l:2|: record 1) is not JSON that can be read"):
        list(stream_texts(tmp_path / name))


def test_half_a_surrogate_pair_raises_naming_the_record(tmp_path):
    half = "\ud83d"  # what is left of an emoji that was cut in two
    chat = {"messages": [{"role": "user", "content": f"So {half}"}]}
    for record in ({"text": f"So {half}"}, chat, assistant_says(f"So {half}")):
        path = written(tmp_path, "a.jsonl", [record])
        with pytest.raises(ValueError, match=r"a\.jsonl:1.* half of a surrogate pair"):
            list(stream_texts(path, tokenizer=chatty_tokenizer()))


def test_a_file_with_another_suffix_raises_rather_than_being_looked_for_as_a_data_set(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"expected a \.txt or \.jsonl file.*got 'a\.parquet'"):
        list(stream_texts(tmp_path / "a.parquet"))


def test_a_missing_file_is_not_looked_for_elsewhere(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(stream_texts(tmp_path / "absent.jsonl"))


def test_a_data_set_of_the_datasets_library_reads_as_its_file(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="the extra `datasets` is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    path = written(tmp_path / "set", "a.jsonl", [OPENTHOUGHTS] * 3)
    expected = list(stream_texts(path, tokenizer=chatty_tokenizer()))
    loaded = datasets.Dataset.from_list([OPENTHOUGHTS] * 3)
    for source in (loaded, loaded.to_iterable_dataset(), str(tmp_path / "set")):
        assert list(stream_texts(source, tokenizer=chatty_tokenizer())) == expected


def test_a_data_set_without_the_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ImportError, match=r"crosscoders\[datasets\]"):
        stream_texts("open-thoughts/OpenThoughts-114k")
