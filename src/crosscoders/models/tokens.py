"""Token ids: whether two tokenizers mean the same by them, and packing documents into equal rows."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.errors import AdapterMismatchError

_IDS_SHOWN = 8


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
            shown = ", ".join(f"{i}: {a!r} / {b!r}" for i, (a, b) in list(changed.items())[:_IDS_SHOWN])
            raise AdapterMismatchError(
                f"one tokenisation feeds all sources, but {len(changed)} token ids differ in meaning between "
                f"{reference_name!r} and {name!r}: {shown}{', ...' if len(changed) > _IDS_SHOWN else ''}. "
                "Pass models that share a tokenizer, or modules without tokenizers and token ids of your own "
                "that avoid these."
            )


@typed
def read_texts(path: str | Path) -> list[str]:
    """Documents of a text file.

    Args:
        path: `.txt`: documents are separated by blank lines; `.jsonl`: one object per line with a "text" key.

    Returns:
        The documents in order, none of them empty.

    Raises:
        ValueError: Another suffix, a line without text, or a file without documents.
    """
    file = Path(path)
    content = file.read_text(encoding="utf-8")
    if file.suffix == ".txt":
        texts = [block.strip("\n") for block in _blocks(content)]
    elif file.suffix == ".jsonl":
        texts = [
            _jsonl_text(line, where=f"{file}:{i + 1}")
            for i, line in enumerate(content.split("\n"))  # JSON text may hold other line breaks
            if line.strip()
        ]
    else:
        raise ValueError(f"read_texts: expected a .txt or .jsonl file, got {file.name!r}.")
    if not texts:
        raise ValueError(f"read_texts: {file} holds no documents.")
    return texts


def _blocks(content: str) -> list[str]:
    blocks: list[list[str]] = [[]]
    for line in content.splitlines():
        if line.strip():
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return ["\n".join(block) for block in blocks if block]


def _jsonl_text(line: str, *, where: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as err:
        raise ValueError(f"read_texts: {where} is not JSON ({err}).") from err
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f'read_texts: {where} has no text; each line needs a non-empty string under "text".')
    return text


@typed
def tokenize_texts(texts: Sequence[str], tokenizer: Any, *, append_eos: bool = False) -> list[list[int]]:
    """Token ids of each document, special tokens added as the tokenizer itself does.

    Args:
        texts: Documents.
        tokenizer: A transformers tokenizer.
        append_eos: Put the tokenizer's end-of-sequence id after each document that does not end in it.

    Returns:
        One list of ids per document.

    Raises:
        ValueError: No documents, a document without tokens, or `append_eos` without an EOS token.
    """
    if not texts:
        raise ValueError("tokenize_texts: got no documents.")
    eos = tokenizer.eos_token_id
    if append_eos and eos is None:
        raise ValueError("tokenize_texts: append_eos=True, but the tokenizer has no eos_token.")
    documents: list[list[int]] = tokenizer(list(texts), verbose=False)["input_ids"]
    for i, document in enumerate(documents):
        if not document:
            raise ValueError(f"tokenize_texts: document {i} has no tokens: {texts[i][:40]!r}.")
        if append_eos and document[-1] != eos:
            document.append(eos)
    return documents


@typed
def pack_tokens(documents: Sequence[Sequence[int]], *, length: int, pad_id: int) -> Int[Tensor, "batch pos"]:
    """Pack whole documents into rows of equal length, padded on the right.

    Best fit in the given order: each document goes into the open row that it fills best, so rows keep the
    mixture of the corpus. Only a document longer than `length` is split, into pieces of `length`. Documents
    in one row see each other through attention. Leave the padding out with
    `ActivationBuffer(exclude_token_ids=(pad_id, ...))`.

    Args:
        documents: Token ids of each document.
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
    pieces: list[Sequence[int]] = []
    for i, document in enumerate(documents):
        if not document:
            raise ValueError(f"pack_tokens: document {i} is empty.")
        pieces += [document[start : start + length] for start in range(0, len(document), length)]
    rows = pack_rows([len(piece) for piece in pieces], length=length)
    packed = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids = [index for piece in row for index in pieces[piece]]
        packed[i, : len(ids)] = torch.tensor(ids)
    return packed


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
