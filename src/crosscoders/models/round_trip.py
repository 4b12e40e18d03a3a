"""Whether text survives its tokenizer, spaces and newlines included, and ids the way through text."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from crosscoders._typing import typed
from crosscoders.errors import AdapterMismatchError

_CHARACTERS_SHOWN = 24
_AGREEING = 4  # tokens in a row that must agree for two sequences to count as in step again
_SKIPPED_AT_MOST = 256  # in both together; what retokenizing changes is a few tokens long


@dataclass(frozen=True, kw_only=True)
class RoundTrip:
    """What came back of texts that were encoded and decoded.

    Args:
        n_texts: Texts tried.
        n_lost: Texts that came back different.
        first_text: Which of the texts, counted from 0, was the first to differ; None if none did.
        position: The first character at which it differs.
        expected: The text from there on, a few characters of it.
        got: What stood there instead.
    """

    n_texts: int
    n_lost: int = 0
    first_text: int | None = None
    position: int | None = None
    expected: str = ""
    got: str = ""


@typed
def round_trip_loss(texts: Iterable[str], tokenizer: Any) -> RoundTrip:
    """Encode and decode texts and compare what comes back with what went in.

    Canonically equivalent spellings count as equal (both sides are compared in Unicode's form NFC, which
    many tokenizers apply first); every other difference counts: case, unknown words, spaces, newlines.

    Args:
        texts: Texts to try.
        tokenizer: A transformers tokenizer.

    Returns:
        How many texts differ, and where the first of them does.
    """
    n_texts = n_lost = 0
    first: dict[str, Any] = {}
    for at, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        expected, got = (unicodedata.normalize("NFC", t) for t in (text, decode(ids, tokenizer)))
        n_texts += 1
        if expected != got:
            n_lost += 1
            first = first or {"first_text": at, **_difference(expected, got)}
    return RoundTrip(n_texts=n_texts, n_lost=n_lost, **first)


@typed
def check_round_trip(texts: Iterable[str], tokenizer: Any, *, name: str = "text") -> None:
    """Check that no text loses anything in its tokenizer.

    transformers 5 builds the tokenizers of DeepSeek models that declare `LlamaTokenizerFast` with a Metaspace
    pre-tokenizer in place of the byte-level one of their files: every space and newline is lost at encoding,
    and the model reads "Okay,soIneedto" without an error anywhere.

    Args:
        texts: Texts to try, for instance a sample of the documents.
        tokenizer: A transformers tokenizer.
        name: What the message calls the texts.

    Raises:
        AdapterMismatchError: A text came back different; the message names the first place, the tokenizer's
            class, and how to load its files as they stand.
    """
    report = round_trip_loss(texts, tokenizer)
    if not report.n_lost:
        return
    raise AdapterMismatchError(
        f"{name}: {report.n_lost} of {report.n_texts} texts do not survive {_describe(tokenizer)}. The first "
        f"is text {report.first_text}: at character {report.position} expected {report.expected!r}, got back "
        f"{report.got!r}. If spaces or newlines are gone, the class does not fit the files; load them as "
        "they stand and pass the result as tokenizer=: PreTrainedTokenizerFast.from_pretrained(folder), or "
        "PreTrainedTokenizerFast(tokenizer_file='.../tokenizer.json')."
    )


@dataclass(frozen=True, kw_only=True)
class Retokenised:
    """How replaced sequences fared when they were decoded and encoded again.

    Args:
        n_rows: Rows in which something was replaced.
        n_rows_lost: Those of them whose replaced form does not come back as it was.
        n_positions: Positions replaced.
        n_positions_lost: Positions, replaced ones or neighbors, that do not come back.
    """

    n_rows: int = 0
    n_rows_lost: int = 0
    n_positions: int = 0
    n_positions_lost: int = 0


@typed
def lost_by_replacing(before: list[list[int]], after: list[list[int]], tokenizer: Any) -> list[set[int]]:
    """Which positions do not come back as ids after replacing some, though they did before.

    Args:
        before: Token ids of each row.
        after: The same rows with other ids at some positions.
        tokenizer: A transformers tokenizer.

    Returns:
        The positions, for each row.
    """
    lost = _not_coming_back(after, tokenizer)
    suspects = [at for at, positions in enumerate(lost) if positions]
    already = _not_coming_back([before[at] for at in suspects], tokenizer)
    for at, positions in zip(suspects, already, strict=True):
        lost[at] -= positions
    return lost


@typed
def decode(ids: list[int], tokenizer: Any) -> str:
    """Text of token ids, special tokens included and spaces as they are.

    Args:
        ids: Token ids.
        tokenizer: A transformers tokenizer.
    """
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _not_coming_back(rows: list[list[int]], tokenizer: Any) -> list[set[int]]:
    if not rows:
        return []
    texts = [decode(row, tokenizer) for row in rows]
    again = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [differing_positions(row, other) for row, other in zip(rows, again, strict=True)]


@typed
def differing_positions(row: list[int], other: list[int]) -> set[int]:
    """Positions of a row that a walk along both does not find again in the other.

    Where the two part, the walk goes on at the nearest place from which some tokens agree again; a row of
    thousands of tokens takes milliseconds, where a longest common subsequence takes seconds.

    Args:
        row: Token ids.
        other: Token ids to find them in.

    Returns:
        The positions; the tokens at all others stand in `other` in the same order.
    """
    lost: set[int] = set()
    at = at_other = 0
    while at < len(row):
        if at_other < len(other) and row[at] == other[at_other]:
            at, at_other = at + 1, at_other + 1
            continue
        skipped, skipped_other = _to_agreement(row[at:], other[at_other:])
        lost.update(range(at, at + skipped))
        at, at_other = at + skipped, at_other + skipped_other
    return lost


def _to_agreement(row: list[int], other: list[int]) -> tuple[int, int]:
    """How many tokens of each to skip until some agree, or both end; all of both where none do soon."""
    for n_skipped in range(1, _SKIPPED_AT_MOST + 1):
        for skipped in range(min(n_skipped, len(row)) + 1):
            rest, rest_other = row[skipped:][:_AGREEING], other[n_skipped - skipped :][:_AGREEING]
            if rest == rest_other and n_skipped - skipped <= len(other):
                return skipped, n_skipped - skipped
    return len(row), len(other)


def _describe(tokenizer: Any) -> str:
    core = getattr(tokenizer, "backend_tokenizer", None)
    splitting = type(core.pre_tokenizer).__name__ if core is not None else "unknown"
    return f"the tokenizer (class {type(tokenizer).__name__}, pre-tokenizer {splitting})"


def _difference(expected: str, got: str) -> dict[str, Any]:
    same = (at for at, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b)
    position = next(same, min(len(expected), len(got)))
    until = position + _CHARACTERS_SHOWN
    return {"position": position, "expected": expected[position:until], "got": got[position:until]}
