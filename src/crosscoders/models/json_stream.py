"""JSON records one at a time: lines, and the elements of a list that need not fit into memory."""

import json
from collections.abc import Iterator
from io import TextIOBase
from pathlib import Path
from typing import Any

_BLOCK_CHARACTERS = 1 << 18
_CUT_MARGIN = 8  # what is cut within a literal, number or escape shows at most this far before the cut


def json_lines(file: TextIOBase, path: Path) -> Iterator[tuple[str, Any]]:
    """Records of a file with one JSON value per line; blank lines are passed over.

    Args:
        file: The open file.
        path: What messages call it.

    Yields:
        Where the record stands, and the record.

    Raises:
        ValueError: A line that is not JSON, or nested too deep.
    """
    for number, line in enumerate(file, 1):  # ends at newlines only; JSON text may hold other line breaks
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as err:  # also numbers too long and lists too deep for Python
                raise ValueError(f"{path}:{number} is not JSON that can be read ({err}).") from err
            yield f"{path}:{number}", record


def json_list(file: TextIOBase, path: Path) -> Iterator[tuple[str, Any]]:
    """Elements of a file that is one JSON list, decoded from a window that moves over the file.

    Args:
        file: The open file.
        path: What messages call it.

    Yields:
        Where the element stands, and the element.

    Raises:
        ValueError: Not a list, not JSON, or nested too deep.
    """
    window = _Window(file)
    if window.next_character() != "[":
        raise ValueError(
            f"{path}: expected a list of records in a .json file; one record per line is .jsonl."
        )
    window.at += 1
    number = 0
    while window.next_character() != "]":
        if number:
            window.expect(",", path=path, number=number)
        yield f"{path}: record {number}", window.decode(f"{path}: record {number}")
        number += 1
    window.at += 1
    if window.next_character():
        raise ValueError(f"{path}: expected nothing after the list of {number} records.")


class _Window:
    """A part of a text file, and the place in it from which to read on."""

    def __init__(self, file: TextIOBase) -> None:
        self._file = file
        self._decoder = json.JSONDecoder()
        self._text = ""
        self.at = 0

    def next_character(self) -> str:
        """The next character that is not white space, or nothing at the end of the file."""
        while True:
            while self.at < len(self._text) and self._text[self.at].isspace():
                self.at += 1
            if self.at < len(self._text):
                return self._text[self.at]
            if not self._read(_BLOCK_CHARACTERS):
                return ""

    def expect(self, character: str, *, path: Path, number: int) -> None:
        got = self.next_character()
        if got != character:
            raise ValueError(
                f"{path}: expected {character!r} or ']' before record {number}, got "
                f"{got or 'the end of the file'!r}."
            )
        self.at += 1

    def decode(self, where: str) -> Any:
        """The JSON value that comes next."""
        self.next_character()
        n_characters = _BLOCK_CHARACTERS
        while True:
            error: json.JSONDecodeError | None = None
            try:
                value, end = self._decoder.raw_decode(self._text, self.at)
            except json.JSONDecodeError as err:
                value, end, error = None, len(self._text), err
            except (ValueError, RecursionError) as err:
                raise ValueError(f"{where} is not JSON that can be read ({err}).") from err
            is_whole = error is None and end < len(self._text) - _CUT_MARGIN
            is_cut = error is not None and (
                error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _CUT_MARGIN
            )
            # A number that ends near the window's end may go on, so more is read before it counts.
            if is_whole or (error is not None and not is_cut) or not self._read(n_characters):
                break
            n_characters *= 2
        if error is not None:
            raise ValueError(f"{where} is not JSON ({error.msg}).") from error
        self.at = end
        return value

    def _read(self, n_characters: int) -> bool:
        """Move the window on; where the file has ended it stays as it is."""
        more = self._file.read(n_characters)
        if more:
            self._text, self.at = self._text[self.at :] + more, 0
        return bool(more)
