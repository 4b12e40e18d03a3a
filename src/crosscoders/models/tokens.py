"""Token ids: whether two tokenizers mean the same by them, and packing documents into equal rows."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Int32
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.errors import AdapterMismatchError

_IDS_SHOWN = 8
_CHARACTERS_AT_ONCE = 1 << 20


@typed
def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer's vocabulary: equal fingerprints mean that every id means the same.

    Args:
        tokenizer: A transformers tokenizer.

    Returns:
        Hex digest over the (token, id) pairs, added tokens included, in the order of ids.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()


@typed
def changed_ids(first: Any, second: Any) -> dict[int, tuple[str | None, str | None]]:
    """Token ids that do not mean the same in two tokenizers.

    Args:
        first: A transformers tokenizer.
        second: Another one.

    Returns:
        For each such id its token in either tokenizer, None where the tokenizer lacks the id; sorted by id.
    """
    tokens_a = {index: token for token, index in first.get_vocab().items()}
    tokens_b = {index: token for token, index in second.get_vocab().items()}
    every_id = sorted(tokens_a.keys() | tokens_b.keys())
    pairs = {index: (tokens_a.get(index), tokens_b.get(index)) for index in every_id}
    return {index: pair for index, pair in pairs.items() if pair[0] != pair[1]}


@typed
def check_tokenizers(tokenizers: Mapping[str, Any]) -> None:
    """Check that one sequence of ids means the same to every source.

    Args:
        tokenizers: Tokenizer of each source by name; sources without one (None) are not compared.

    Raises:
        AdapterMismatchError: Ids differ in meaning between two sources; the message names them.
    """
    present = [(name, tokenizer) for name, tokenizer in tokenizers.items() if tokenizer is not None]
    for name, tokenizer in present[1:]:
        reference_name, reference = present[0]
        if tokenizer is reference:
            continue
        changed = changed_ids(reference, tokenizer)
        if changed:
            raise AdapterMismatchError(
                f"one tokenization feeds all sources, but {len(changed)} token ids differ in meaning between "
                f"{reference_name!r} and {name!r}: {describe_ids(changed)}. Say what to do with them: "
                "id_policy='drop' (no model reads them), id_policy='mask' (read, but never served), or an "
                "IdPolicy with a rule for each."
            )


def describe_ids(changed: Mapping[int, tuple[str | None, str | None]]) -> str:
    """The first of some changed ids with both meanings, for messages.

    Args:
        changed: As `changed_ids` gives them.
    """
    shown = ", ".join(f"{i}: {a!r} / {b!r}" for i, (a, b) in list(changed.items())[:_IDS_SHOWN])
    return f"{shown}{', ...' if len(changed) > _IDS_SHOWN else ''}"


@typed
def tokenize_texts(texts: Iterable[str], tokenizer: Any, *, append_eos: bool = False) -> list[list[int]]:
    """Token ids of each document, special tokens added as the tokenizer itself does.

    Args:
        texts: Documents; an iterator is read about a million characters at a time.
        tokenizer: A transformers tokenizer.
        append_eos: Put the tokenizer's end-of-sequence id after each document that does not end in it.

    Returns:
        One list of ids per document. `stream_tokens` gives the same in a ninth of the memory.

    Raises:
        ValueError: No documents, a document without tokens, or `append_eos` without an EOS token.
    """
    return [document.tolist() for document in stream_tokens(texts, tokenizer, append_eos=append_eos)]


@typed
def stream_tokens(
    texts: Iterable[str], tokenizer: Any, *, append_eos: bool = False
) -> Iterator[Int32[np.ndarray, " pos"]]:
    """Token ids of each document, one document after the other.

    Args:
        texts: Documents; an iterator is read about a million characters at a time.
        tokenizer: A transformers tokenizer.
        append_eos: Put the tokenizer's end-of-sequence id after each document that does not end in it.

    Returns:
        An iterator over the ids of each document as int32: four bytes a token where a list takes 36.

    Raises:
        ValueError: While iterating: no documents, a document without tokens, or `append_eos` without an EOS
            token.
    """
    eos = tokenizer.eos_token_id
    if append_eos and eos is None:
        raise ValueError("tokenize_texts: append_eos=True, but the tokenizer has no eos_token.")
    n_seen = 0
    for some in _grouped(texts):
        encoded = tokenizer(some, verbose=False, return_attention_mask=False, return_token_type_ids=False)
        for text, ids in zip(some, encoded["input_ids"], strict=True):
            if not ids:
                raise ValueError(f"tokenize_texts: document {n_seen} has no tokens: {text[:40]!r}.")
            yield np.array([*ids, eos] if append_eos and ids[-1] != eos else ids, dtype=np.int32)
            n_seen += 1
    if not n_seen:
        raise ValueError("tokenize_texts: got no documents.")


def _grouped(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in groups of about a million characters: an encoding takes some hundred bytes a token."""
    group: list[str] = []
    n_characters = 0
    for text in texts:
        group.append(text)
        n_characters += len(text)
        if n_characters >= _CHARACTERS_AT_ONCE:
            yield group
            group, n_characters = [], 0
    if group:
        yield group


@typed
def pack_tokens(
    documents: Sequence[Sequence[int] | np.ndarray], *, length: int, pad_id: int
) -> Int[Tensor, "batch pos"]:
    """Pack whole documents into rows of equal length, padded on the right.

    Best fit in the given order: each document goes into the open row that it fills best, so rows keep the
    mixture of the corpus. Only a document longer than `length` is split, into pieces of `length`. Documents
    in one row see each other through attention. Leave the padding out with
    `ActivationBuffer(exclude_token_ids=(pad_id, ...))`.

    Args:
        documents: Token ids of each document, as lists or NumPy arrays.
        length: Tokens per row.
        pad_id: Id that fills the rest of a row.

    Returns:
        int64 token ids, one row per pack.

    Raises:
        ValueError: No documents, an empty document, or `length` below 1.
    """
    if length < 1:
        raise ValueError(f"pack_tokens: length must be at least 1, got {length}.")
    if not documents:
        raise ValueError("pack_tokens: got no documents.")
    pieces: list[Sequence[int] | np.ndarray] = []
    for i, document in enumerate(documents):
        if not len(document):
            raise ValueError(f"pack_tokens: document {i} is empty.")
        is_whole = len(document) <= length  # a slice would be one more object for each document
        starts = range(0, len(document), length)
        pieces += [document] if is_whole else [document[start : start + length] for start in starts]
    rows = pack_rows([len(piece) for piece in pieces], length=length)
    packed = np.full((len(rows), length), pad_id, dtype=np.int64)
    for i, row in enumerate(rows):
        filled = 0
        for piece in row:
            packed[i, filled : filled + len(pieces[piece])] = pieces[piece]
            filled += len(pieces[piece])
    return torch.from_numpy(packed)


@typed
def pack_rows(lengths: Sequence[int], *, length: int) -> list[list[int]]:
    """Which documents share a row: best fit in the given order, none of them split.

    Args:
        lengths: Tokens of each document.
        length: Tokens that a row holds.

    Returns:
        Document numbers of each row, in the order in which they stand there.

    Raises:
        ValueError: A document is empty or longer than a row.
    """
    rows: list[list[int]] = []
    rows_by_space: list[list[int]] = [[] for _ in range(length + 1)]
    for i, needed in enumerate(lengths):
        if not 1 <= needed <= length:
            raise ValueError(f"pack_rows: document {i} has {needed} tokens, expected 1 to {length}.")
        tightest = next((space for space in range(needed, length + 1) if rows_by_space[space]), None)
        if tightest is None:
            rows.append([])
            index, tightest = len(rows) - 1, length
        else:
            index = rows_by_space[tightest].pop()
        rows[index].append(i)
        rows_by_space[tightest - needed].append(index)
    return rows
