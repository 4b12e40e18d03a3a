"""Tokenizer comparison, reading text, packing."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosscoders.errors import AdapterMismatchError
from crosscoders.models import (
    changed_ids,
    check_tokenizers,
    pack_tokens,
    read_texts,
    tokenize_texts,
    tokenizer_fingerprint,
)
from tests.data.real_tokenizers import qwen_tokenizer, r1_tokenizer
from tests.data.toy_models import toy_tokenizer


def test_fingerprints_agree_exactly_when_every_id_means_the_same() -> None:
    assert tokenizer_fingerprint(toy_tokenizer()) == tokenizer_fingerprint(toy_tokenizer())
    assert tokenizer_fingerprint(toy_tokenizer()) != tokenizer_fingerprint(toy_tokenizer(swapped=(5, 9)))


def test_changed_ids_are_named_with_both_meanings() -> None:
    assert changed_ids(toy_tokenizer(), toy_tokenizer()) == {}
    assert changed_ids(toy_tokenizer(), toy_tokenizer(swapped=(5, 9))) == {5: ("w5", "w9"), 9: ("w9", "w5")}
    larger = toy_tokenizer()
    larger.add_tokens(["more"])
    assert changed_ids(toy_tokenizer(), larger) == {40: (None, "more")}


def test_ids_of_other_meaning_raise_naming_them() -> None:
    check_tokenizers({"base": toy_tokenizer(), "distilled": None, "null": toy_tokenizer()})
    with pytest.raises(
        AdapterMismatchError, match=r"2 token ids.*'base' and 'distilled': 5: 'w5' / 'w9', 9: 'w9' / 'w5'"
    ):
        check_tokenizers({"base": toy_tokenizer(), "distilled": toy_tokenizer(swapped=(5, 9))})


def test_the_papers_own_pair_differs_in_the_ids_of_its_control_tokens(data_file):
    base, distilled = qwen_tokenizer(data_file), r1_tokenizer(data_file)
    changed = changed_ids(base, distilled)
    assert list(changed) == list(range(151643, 151650))
    assert changed[151643] == ("<|endoftext|>", "<\uff5cend\u2581of\u2581sentence\uff5c>")
    assert changed[151648] == ("<|box_start|>", "<think>")
    assert tokenizer_fingerprint(base) != tokenizer_fingerprint(distilled)
    with pytest.raises(AdapterMismatchError, match=r"7 token ids .*151643.*id_policy='drop'.*IdPolicy"):
        check_tokenizers({"base": base, "distilled": distilled})


def test_texts_are_split_at_blank_lines_and_jsonl_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\n \n\nthree\n")
    (tmp_path / "a.jsonl").write_text('{"text": "one\\ntwo"}\n\n{"text": "three", "id": 1}\n')
    assert read_texts(tmp_path / "a.txt") == read_texts(str(tmp_path / "a.jsonl")) == ["one\ntwo", "three"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.txt", " \n\n", "holds no documents"),
        ("a.jsonl", '{"text": "x"}\n{"txt": "y"}\n', "a.jsonl:2 has no text"),
        ("a.jsonl", '{"text": " "}\n', "a.jsonl:1 has no text"),
        ("a.jsonl", '{"text": \n', "a.jsonl:1 is not JSON"),
        ("a.csv", "x", "expected a .txt or .jsonl"),
    ],
)
def test_files_without_text_raise(tmp_path: Path, file: str, content: str, message: str) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_texts(tmp_path / file)


def test_tokenize_appends_the_end_of_sequence_once() -> None:
    texts = ["w5 w6", "w7 <eos>"]
    assert tokenize_texts(texts, toy_tokenizer()) == [[5, 6], [7, 1]]
    assert tokenize_texts(texts, toy_tokenizer(), append_eos=True) == [[5, 6, 1], [7, 1]]
    with pytest.raises(ValueError, match="document 1 has no tokens"):
        tokenize_texts(["w5", " "], toy_tokenizer())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=30), st.integers(1, 7))
def test_packing_keeps_every_document_whole_and_every_token_once(lengths: list[int], length: int) -> None:
    documents = [[100 * (i + 1) + j for j in range(n)] for i, n in enumerate(lengths)]
    rows = pack_tokens(documents, length=length, pad_id=0).tolist()
    assert sorted(t for row in rows for t in row if t) == sorted(
        t for document in documents for t in document
    )
    starts = {row[p]: (r, p) for r, row in enumerate(rows) for p in range(length) if row[p]}
    for document in documents:
        for begin in range(0, len(document), length):
            piece = document[begin : begin + length]
            r, p = starts[piece[0]]
            assert rows[r][p : p + len(piece)] == piece
    assert all(0 not in row[: sum(t != 0 for t in row)] for row in rows)  # padding only at the end


def test_packing_fills_rows_and_keeps_the_order_of_the_corpus() -> None:
    rows = pack_tokens([[1] * 5, [2] * 4, [3] * 3, [4] * 4], length=8, pad_id=0).tolist()
    assert rows == [[1] * 5 + [3] * 3, [2] * 4 + [4] * 4]


def test_packing_without_documents_raises() -> None:
    with pytest.raises(ValueError, match="no documents"):
        pack_tokens([], length=4, pad_id=0)
    with pytest.raises(ValueError, match="document 1 is empty"):
        pack_tokens([[1], []], length=4, pad_id=0)
