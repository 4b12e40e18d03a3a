"""Lexicons: per category the words that open its acts, read from a TOML file that anyone can edit."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosscoders._typing import typed

PACKAGED_LEXICON = Path(__file__).with_name("lexicon.toml")
_KEYS = ("phrases", "patterns", "unless")


@dataclass(frozen=True, kw_only=True)
class CategoryWords:
    """The words of one category.

    Args:
        phrases: What opens an act of the category, in the case in which it stands there; matched between word
            boundaries.
        patterns: Regular expressions; a sentence in which one is found belongs to the category.
        unless: Regular expressions; a sentence in which one is found does not, whatever else it holds.

    Raises:
        ValueError: No phrase, or one that is empty or has outer spaces.
    """

    phrases: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.phrases:
            raise ValueError("CategoryWords: phrases is empty; a category needs at least one phrase.")
        for phrase in self.phrases:
            if not phrase or phrase != phrase.strip():
                raise ValueError(
                    f"CategoryWords: phrase {phrase!r} is empty or has outer spaces; write it bare."
                )
        for name in ("patterns", "unless"):
            for pattern in getattr(self, name):
                _check_pattern(name, pattern)


@typed
def read_lexicon(path: str | Path | None = None) -> dict[str, CategoryWords]:
    """Read a lexicon: one TOML table per category with `phrases` and, optionally, `patterns` and `unless`.

    Args:
        path: A file such as an edited copy of the packaged `lexicon.toml`; None reads the packaged one.

    Returns:
        Words by category, in the order of the file. Categories may be others than the paper's four.

    Raises:
        ValueError: Not TOML, no category, an unknown key, a value that is no list of strings, a category
            without phrases, or a pattern that does not compile; the message names file and category.
        FileNotFoundError: No such file.
    """
    return parse_lexicon(Path(path) if path is not None else PACKAGED_LEXICON)


def parse_lexicon(path: Path) -> dict[str, CategoryWords]:
    """What `read_lexicon` does, unchecked at the call so that importing the package stays cheap."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:  # bad TOML or bad UTF-8
        raise ValueError(f"read_lexicon: {path} is not a TOML file: {err}") from err
    if not content:
        raise ValueError(f"read_lexicon: {path} holds no category; write one table per category.")
    return {name: _category(f"read_lexicon: {path}, [{name}]", table) for name, table in content.items()}


def _category(where: str, table: Any) -> CategoryWords:
    if not isinstance(table, Mapping):
        raise ValueError(f"{where}: expected a table with the keys {list(_KEYS)}, got {table!r}.")
    unknown = sorted(set(table) - set(_KEYS))
    if unknown:
        raise ValueError(f"{where}: unknown keys {unknown}; the keys are {list(_KEYS)}.")
    for key, values in table.items():
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ValueError(f"{where}: {key} must be a list of strings, got {values!r}.")
    try:
        return CategoryWords(**{key: tuple(values) for key, values in table.items()})
    except ValueError as err:
        raise ValueError(f"{where}: {err}") from err


def _check_pattern(name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as err:
        raise ValueError(
            f"CategoryWords: {name} holds {pattern!r}, which is no regular expression: {err}."
        ) from err
