"""Categories of sentences by their words, and where in a text the words stand."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from crosscoders._typing import typed
from crosscoders.reasoning.lexicon import CategoryWords, read_lexicon


@dataclass(frozen=True, kw_only=True)
class Opener:
    """A phrase of a category where it stands in a text, as a span of characters.

    Args:
        category: Name of the category.
        start: First character of the phrase.
        stop: One past its last character.
    """

    category: str
    start: int
    stop: int


@final
class LexicalAnnotator:
    """Tells the reasoning categories of a sentence from a lexicon.

    A sentence belongs to a category if one of its phrases stands in it, case and word boundaries respected,
    or one of its patterns is found, unless one of its `unless` patterns is. It may belong to several or none.
    Words are evidence of an act, not the act: `benchmarks/lexical_annotator.py` measures how good.

    Args:
        lexicon: Words per category; the packaged lexicon if None.

    Example:
        annotator = LexicalAnnotator()
        annotator.categories("Wait, let me check that.")  # frozenset({"self-reflection"})
    """

    @typed
    def __init__(self, lexicon: Mapping[str, CategoryWords] | None = None) -> None:
        self.lexicon = dict(read_lexicon() if lexicon is None else lexicon)
        self._phrases = {name: _any_phrase(words.phrases) for name, words in self.lexicon.items()}
        self._patterns = {
            name: [re.compile(p) for p in words.patterns] for name, words in self.lexicon.items()
        }
        self._unless = {name: [re.compile(p) for p in words.unless] for name, words in self.lexicon.items()}

    @typed
    def categories(self, text: str) -> frozenset[str]:
        """Categories of a sentence.

        Args:
            text: One sentence (longer text works too, but `patterns` and `unless` then apply to all of it).

        Returns:
            Names of the categories; empty where none applies.
        """
        return frozenset(name for name in self.lexicon if self._belongs(name, text))

    @typed
    def openers(self, text: str) -> tuple[Opener, ...]:
        """Where phrases stand in a text, in the order of their start; patterns play no part.

        Args:
            text: Any text.

        Returns:
            Spans in characters, which never overlap within a category.
        """
        found = [
            Opener(category=name, start=match.start(), stop=match.end())
            for name, phrases in self._phrases.items()
            for match in phrases.finditer(text)
        ]
        return tuple(sorted(found, key=lambda opener: (opener.start, opener.category)))

    def _belongs(self, name: str, text: str) -> bool:
        if any(pattern.search(text) for pattern in self._unless[name]):
            return False
        found = self._phrases[name].search(text)
        return found is not None or any(pattern.search(text) for pattern in self._patterns[name])


def _any_phrase(phrases: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(phrases, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")
