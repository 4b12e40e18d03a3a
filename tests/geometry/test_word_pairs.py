"""Loading word pairs, and the bundled pair's own."""

import json
from pathlib import Path

import pytest

from crosscoders.geometry.word_pairs import PAPER_TASKS, WordTask, read_word_tasks
from crosscoders.zoo.analogies import word_tasks
from crosscoders.zoo.vocabulary import UNKNOWN, build_tokenizer, token_ids

RECORDS = {
    "antonym": 2398,
    "capitalize": 813,
    "country-capital": 197,
    "english-french": 4698,
    "english-german": 5145,
    "english-spanish": 5199,
    "next_item": 225,
    "present-past": 293,
    "prev_item": 225,
    "singular-plural": 205,
    "synonym": 2880,
    "word_length": 814,
}


def write(folder: Path, content: object) -> Path:
    (folder / "task.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_twelve_real_tasks_have_their_record_counts(data_file) -> None:
    tasks = read_word_tasks(data_file("function_vectors/abstractive"))
    assert {task.name: len(task.pairs) for task in tasks} == RECORDS
    assert tuple(RECORDS) == PAPER_TASKS
    pairs = {task.name: task.pairs for task in tasks}
    assert pairs["country-capital"][0] == ("Afghanistan", "Kabul")
    assert ("dependent", "d\u00e9pendant") in pairs["english-french"]


def test_keys_may_stand_in_either_order(tmp_path: Path) -> None:
    folder = write(tmp_path, [{"output": "b", "input": "a"}, {"input": "c", "output": "d"}])
    assert read_word_tasks(folder, tasks=["task"]) == (WordTask(name="task", pairs=(("a", "b"), ("c", "d"))),)


@pytest.mark.parametrize(
    "record", [{"input": "a"}, {"input": "a", "output": 3}, {"input": "", "output": "b"}, ["a", "b"]]
)
def test_a_bad_record_is_named(tmp_path: Path, record: object) -> None:
    folder = write(tmp_path, [{"input": "a", "output": "b"}, record])
    with pytest.raises(ValueError, match=r"task\.json, record 1 must be"):
        read_word_tasks(folder, tasks=["task"])


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="non-empty list"):
        read_word_tasks(write(tmp_path, {"input": "a"}), tasks=["task"])
    (tmp_path / "task.json").write_text("[", encoding="utf-8")
    with pytest.raises(ValueError, match=r"task\.json is not JSON"):
        read_word_tasks(tmp_path, tasks=["task"])
    with pytest.raises(ValueError, match=r"no file .*verb\.json; the tasks in that folder are \['task'\]"):
        read_word_tasks(tmp_path, tasks=["verb"])


def test_a_task_needs_pairs_of_words() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        WordTask(name="empty", pairs=())
    with pytest.raises(ValueError, match="pair 1"):
        WordTask(name="gap", pairs=(("a", "b"), ("a", "")))


def test_bundled_analogies_are_known_words_that_differ() -> None:
    tokenizer = build_tokenizer()
    for task in word_tasks():
        name, pairs = task.name, task.pairs
        ids = [[tokenizer(w, add_special_tokens=False)["input_ids"] for w in pair] for pair in pairs]
        assert len(set(pairs)) == len(pairs) >= 9
        assert all(token_ids()[UNKNOWN] not in words for pair in ids for words in pair)
        assert all(len(a) == len(b) for a, b in ids)
        if name == "plus_ten":
            assert all(a[-1] == b[-1] and a != b for a, b in ids)
        else:
            assert sum(a[-1] != b[-1] for a, b in ids) > 0.8 * len(ids)
