"""Documents one at a time from files and data sets: plain text, chats and OpenThoughts records."""

import gzip
import itertools
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from io import TextIOBase
from pathlib import Path
from typing import Any, Literal

from crosscoders._typing import typed
from crosscoders.models.chat import render_chat
from crosscoders.models.json_stream import json_lines, json_list

Format = Literal["auto", "text", "openthoughts", "chat"]

_KEYS = {"text": "text", "openthoughts": "conversations", "chat": "messages"}
_SUFFIXES = (".txt", ".jsonl", ".json")
_MARKERS = ("<|begin_of_thought|>", "<|end_of_thought|>", "<|begin_of_solution|>", "<|end_of_solution|>")
_ANSWER = re.compile(r"\s*{}(.*){}\s*(?:{}(.*){}\s*|(.*))".format(*map(re.escape, _MARKERS)), re.DOTALL)
_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}


@typed
def read_texts(path: str | Path) -> list[str]:
    """Documents of a text file.

    Args:
        path: `.txt`: documents are separated by blank lines; `.jsonl`: one object per line with a "text" key;
            `.json`: a list of such objects. Each may be packed as `.gz`.

    Returns:
        The documents in order, none of them empty.

    Raises:
        ValueError: Another suffix, a record without text, or a file without documents.
    """
    return list(_file_texts(Path(path), asked="text", tokenizer=None, keep_reasoning=True))


@typed
def stream_texts(
    path_or_dataset: str | Path | Iterable[Any],
    *,
    format: Format = "auto",  # noqa: A002
    tokenizer: Any = None,
    keep_reasoning: bool = True,
    split: str = "train",
) -> Iterator[str]:
    """Documents one after the other; the source is never read as a whole.

    The formats, told apart by their keys:

    - text: {"text": ...}; a `.txt` file has documents between blank lines.
    - chat: {"messages": [{"role", "content"}, ...]}, rendered by `render_chat`.
    - openthoughts: {"system", "conversations": [{"from", "value"}, ...]}, made into a chat by
      `openthoughts_messages`: its thought markers become `<think>` and `</think>`.

    Args:
        path_or_dataset: A `.txt`, `.jsonl` or `.json` file (also `.gz`), the id or folder of a data set for
            `datasets.load_dataset`, or records by themselves: a `datasets.Dataset` or any iterable of
            mappings.
        format: What the records are; "auto" takes the one format whose key the first record has. All records
            must have that key.
        tokenizer: Its chat template renders chats. The begin-of-text token that the template writes is left
            out where the tokenizer puts one itself, so that documents do not start with two.
        keep_reasoning: See `render_chat`.
        split: Which split of a data set to read.

    Returns:
        An iterator over the documents, none of them empty.

    Raises:
        ValueError: Found while iterating: an unknown suffix, no records, a record of another format, one
            without text or with malformed markers (each message names the record), or chats without a
            tokenizer.
        FileNotFoundError: No such file.
        ImportError: A data set was named and `datasets` is not installed.

    Example:
        for text in stream_texts("openthoughts.jsonl", tokenizer=tokenizer):
            ...
    """
    if isinstance(path_or_dataset, str | Path):
        path = Path(path_or_dataset)
        if _suffix(path) in _SUFFIXES or path.is_file():
            return _file_texts(path, asked=format, tokenizer=tokenizer, keep_reasoning=keep_reasoning)
        named = _load_dataset(str(path_or_dataset), split=split)
        where = f"{path_or_dataset} ({split})"
    else:
        named, where = path_or_dataset, type(path_or_dataset).__name__
    records = ((f"{where}: record {at}", record) for at, record in enumerate(named))
    return _texts(records, name=where, asked=format, tokenizer=tokenizer, keep_reasoning=keep_reasoning)


@typed
def openthoughts_messages(record: Mapping[str, Any], *, where: str = "record") -> list[dict[str, str]]:
    """The turns of an OpenThoughts record, its thoughts between `<think>` and `</think>`.

    OpenThoughts-114k marks an answer as `<|begin_of_thought|> ... <|end_of_thought|>` and
    `<|begin_of_solution|> ... <|end_of_solution|>`, markers that no tokenizer of the R1 family knows. An
    answer becomes `<think>`, the thought, `</think>`, a blank line and the solution, as R1 writes it.

    Args:
        record: {"system", "conversations": [{"from", "value"}, ...]}.
        where: What messages call the record.

    Returns:
        {"role", "content"} of each turn, the system text first where there is one, unchanged.

    Raises:
        ValueError: No turns, an unknown speaker, a turn without text, or markers that are not those of one
            thought and one solution after it.
    """
    turns = record.get("conversations")
    if not isinstance(turns, list | tuple) or not turns:
        raise ValueError(f'{where}: "conversations" must be a list of turns, got {turns!r}.')
    system = record.get("system")
    messages = [{"role": "system", "content": _string(system, f"{where}: system")}] if system else []
    for at, turn in enumerate(turns):
        speaker = turn.get("from") if isinstance(turn, Mapping) else None
        if speaker not in _ROLES:
            raise ValueError(
                f'{where}: "from" of turn {at} must be one of {sorted(_ROLES)}, got {speaker!r}.'
            )
        value = _string(turn.get("value"), f"{where}: turn {at}")
        role = _ROLES[speaker]
        content = _without_markers(value, where=f"{where}: turn {at}") if role == "assistant" else value
        messages.append({"role": role, "content": content})
    return messages


def _without_markers(value: str, *, where: str) -> str:
    counts = {marker: value.count(marker) for marker in _MARKERS}
    if not any(counts.values()):
        return value
    match = _ANSWER.fullmatch(value)
    thought, solution = (match[1].strip(), (match[2] or match[3] or "").strip()) if match else ("", "")
    if not thought or not solution or any(marker in thought + solution for marker in _MARKERS):
        raise ValueError(
            f"{where}: expected {_MARKERS[0]} thought {_MARKERS[1]} {_MARKERS[2]} solution "
            f"{_MARKERS[3]}, each marker once (the solution may go without), got {counts} in "
            f"{value[:40]!r} ... {value[-40:]!r}."
        )
    return f"<think>\n{thought}\n</think>\n\n{solution}"


def _file_texts(path: Path, *, asked: Format, tokenizer: Any, keep_reasoning: bool) -> Iterator[str]:
    suffix = _suffix(path)
    if suffix not in _SUFFIXES:
        raise ValueError(
            f"read_texts: expected a .txt or .jsonl file (or .json, or one packed as .gz), got {path.name!r}."
        )
    if suffix == ".txt" and asked not in ("auto", "text"):
        raise ValueError(f"{path}: a .txt file holds plain text, but format={asked!r} was asked for.")
    with _open(path) as file:
        if suffix == ".txt":
            records = ((str(path), {"text": block}) for block in _blocks(file))
        else:
            records = json_lines(file, path) if suffix == ".jsonl" else json_list(file, path)
        readable = _readable(records, path)
        yield from _texts(
            readable, name=str(path), asked=asked, tokenizer=tokenizer, keep_reasoning=keep_reasoning
        )


def _readable(records: Iterator[tuple[str, Any]], path: Path) -> Iterator[tuple[str, Any]]:
    try:
        yield from records
    except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as err:
        raise ValueError(f"{path}: not UTF-8 text, or a damaged .gz file ({err}).") from err


def _texts(
    records: Iterable[tuple[str, Any]], *, name: str, asked: Format, tokenizer: Any, keep_reasoning: bool
) -> Iterator[str]:
    remaining = iter(records)
    first = next(remaining, None)
    if first is None:
        raise ValueError(f"{name} holds no documents.")
    kind = _detected(first[1], where=first[0]) if asked == "auto" else asked
    if kind != "text" and tokenizer is None:
        raise ValueError(
            f"{name}: {kind} records are rendered by a chat template; pass tokenizer=, or make messages and "
            "text of them yourself (openthoughts_messages)."
        )
    start = _own_start(tokenizer) if kind != "text" else ""
    for where, record in itertools.chain([first], remaining):
        _check_kind(record, kind, where=where)
        if kind == "text":
            yield _encodable(_string(record["text"], where), where)
            continue
        messages = record["messages"] if kind == "chat" else openthoughts_messages(record, where=where)
        text = _rendered(messages, tokenizer, where=where, keep_reasoning=keep_reasoning)
        yield _encodable(text.removeprefix(start), where)


def _rendered(messages: Any, tokenizer: Any, *, where: str, keep_reasoning: bool) -> str:
    if not isinstance(messages, list | tuple) or not all(isinstance(turn, Mapping) for turn in messages):
        raise ValueError(f'{where}: "messages" must be a list of {{"role", "content"}}, got {messages!r}.')
    try:
        return render_chat(messages, tokenizer, keep_reasoning=keep_reasoning)
    except ValueError as err:
        raise ValueError(f"{where}: {err}") from err


def _detected(record: Any, *, where: str) -> str:
    present = [kind for kind, key in _KEYS.items() if isinstance(record, Mapping) and key in record]
    if len(present) != 1:
        got = sorted(record) if isinstance(record, Mapping) else type(record).__name__
        raise ValueError(
            f"{where} has no text that can be told apart: expected one of the keys {sorted(_KEYS.values())}, "
            f"got {got}; pass format= where a record has several."
        )
    return present[0]


def _check_kind(record: Any, kind: str, *, where: str) -> None:
    if not isinstance(record, Mapping) or _KEYS[kind] not in record:
        got = sorted(record) if isinstance(record, Mapping) else type(record).__name__
        raise ValueError(
            f'{where} has no text; each {kind} record needs "{_KEYS[kind]}", like those before it, got {got}.'
        )


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where} has no text; expected a non-empty string, got {value!r}.")
    return value


def _encodable(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as err:
        raise ValueError(
            f"{where}: character {err.start} of the document is half of a surrogate pair, which no tokenizer "
            f"takes ({text[max(err.start - 20, 0) : err.end]!r}); was the text cut inside a character?"
        ) from err
    return text


def _own_start(tokenizer: Any) -> str:
    """What the tokenizer itself puts before a text, as text."""
    ids = tokenizer("")["input_ids"]
    is_start = ids and ids[0] != tokenizer.eos_token_id
    return str(tokenizer.decode(ids[:1], skip_special_tokens=False)) if is_start else ""


def _load_dataset(name: str, *, split: str) -> Iterable[Any]:
    try:
        from datasets import load_dataset
    except ImportError as err:
        raise ImportError(
            f"stream_texts: {name!r} is not a .txt, .jsonl or .json file, and reading it as a data set needs "
            "the extra `datasets`: pip install 'crosscoders[datasets]'."
        ) from err
    return load_dataset(name, split=split, streaming=True)


def _suffix(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _open(path: Path) -> TextIOBase:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")  # with or without a byte order mark


def _blocks(file: TextIOBase) -> Iterator[str]:
    block: list[str] = []
    for line in itertools.chain.from_iterable(raw.splitlines() for raw in file):
        if line.strip():
            block.append(line)
        elif block:
            yield "\n".join(block)
            block = []
    if block:
        yield "\n".join(block)
