"""Word pairs by task: what an analogy is made of, and the loader of Todd et al.'s files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosscoders._typing import typed

PAPER_TASKS: tuple[str, ...] = (
    "antonym",
    "capitalize",
    "country-capital",
    "english-french",
    "english-german",
    "english-spanish",
    "next_item",
    "present-past",
    "prev_item",
    "singular-plural",
    "synonym",
    "word_length",
)
"""The twelve abstractive tasks that the parallelogram loss was defined on (Baek et al. 2025)."""


@dataclass(frozen=True, kw_only=True)
class WordTask:
    """Pairs of words in one relation, such as singular and plural.

    Args:
        name: Name of the relation.
        pairs: (input, output) of each pair; at least one, none of the words empty.

    Raises:
        ValueError: No pairs, or an empty word.
    """

    name: str
    pairs: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ValueError(f"WordTask {self.name!r}: no pairs; a task needs at least one.")
        for at, pair in enumerate(self.pairs):
            if not all(pair):
                raise ValueError(f"WordTask {self.name!r}: pair {at} is {pair}; a word is empty.")


@typed
def read_word_tasks(folder: str | Path, *, tasks: Sequence[str] = PAPER_TASKS) -> tuple[WordTask, ...]:
    """Read word pairs in the format of Todd et al. 2023 (function vectors), one `<task>.json` per task.

    A file is a list of objects with the string keys "input" and "output", in either order. All pairs are
    kept as they stand, repeated inputs and equal words included.

    Args:
        folder: Folder of the files, such as `dataset_files/abstractive`.
        tasks: Names of the files without suffix.

    Returns:
        One task per name, in that order.

    Raises:
        ValueError: No such file, not JSON, or a record that is not a pair of non-empty strings; the message
            names file and record.
    """
    return tuple(WordTask(name=name, pairs=_read_pairs(Path(folder) / f"{name}.json")) for name in tasks)


def _read_pairs(path: Path) -> tuple[tuple[str, str], ...]:
    if not path.is_file():
        found = sorted(file.stem for file in path.parent.glob("*.json"))
        raise ValueError(f"read_word_tasks: no file {path}; the tasks in that folder are {found}.")
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise ValueError(f"read_word_tasks: {path} is not JSON ({err}).") from err
    if not isinstance(records, list) or not records:
        raise ValueError(
            f'read_word_tasks: {path} must hold a non-empty list of {{"input": ..., "output": ...}}, '
            f"got {type(records).__name__}."
        )
    return tuple(_pair(record, where=f"{path}, record {at}") for at, record in enumerate(records))


def _pair(record: Any, *, where: str) -> tuple[str, str]:
    words = [record.get(key) for key in ("input", "output")] if isinstance(record, dict) else []
    known = [word for word in words if isinstance(word, str) and word]
    if len(known) != 2:
        raise ValueError(
            f'read_word_tasks: {where} must be {{"input": word, "output": word}} with non-empty strings, '
            f"got {record!r}."
        )
    return known[0], known[1]
