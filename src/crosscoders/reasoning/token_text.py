"""The text of one token as it is, also where it is a piece of a character."""

import re
from collections.abc import Iterable
from typing import Any

from crosscoders._typing import typed

_LOST = "\ufffd"  # what decoding puts where bytes are no UTF-8
_SPACE = "\u2581"  # how sentencepiece writes a space
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_of_character() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for.

    Byte-level BPE (Radford et al. 2019, GPT-2; also Qwen and Llama 3) writes the printable characters of
    Latin-1 as themselves and the 68 other bytes, in order, as the characters from U+0100 on.
    """
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + at): byte for at, byte in enumerate(others)}


_BYTES = _byte_of_character()


@typed
def token_text(tokenizer: Any, token_id: int) -> str:
    """The text of one token; bytes that are no UTF-8 by themselves as lone surrogates U+DC80 to U+DCFF.

    Those are what Python's "surrogateescape" makes of them, so the texts of a text's tokens together,
    encoded as UTF-8 with that error handler, are the bytes of the text. A byte-level token or one of
    sentencepiece's byte tokens (`<0xE4>`) may hold such bytes; everything else is decoded without clean-up
    and with special tokens kept. The space that a sentencepiece token begins with is kept.

    Args:
        tokenizer: The tokenizer; its `decode` and `convert_ids_to_tokens` are called.
        token_id: The id. One beyond the tokenizer's vocabulary, as padded embeddings have, is written as
            `<id 151900>`.

    Raises:
        ValueError: The id is negative.
    """
    return _text(tokenizer, token_id)


@typed
def token_texts(tokenizer: Any, token_ids: Iterable[int]) -> list[str]:
    """`token_text` of many tokens.

    Args:
        tokenizer: The tokenizer.
        token_ids: The ids.

    Raises:
        ValueError: An id is negative.
    """
    return [_text(tokenizer, int(token_id)) for token_id in token_ids]


def _text(tokenizer: Any, token_id: int) -> str:
    if token_id < 0:
        raise ValueError(f"token_text: expected a token id of at least 0, got {token_id}.")
    piece = _piece(tokenizer, token_id)
    if piece is None:
        return f"<id {token_id}>"
    text = tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    byte = _BYTE_TOKEN.fullmatch(piece)
    if byte and text != piece:
        return bytes.fromhex(byte[1]).decode("utf-8", "surrogateescape")
    if _LOST in text and all(ch in _BYTES for ch in piece):
        return bytes(_BYTES[ch] for ch in piece).decode("utf-8", "surrogateescape")
    spaced = piece.replace(_SPACE, " ")
    return spaced if piece.startswith(_SPACE) and spaced.endswith(text) else text


def _piece(tokenizer: Any, token_id: int) -> str | None:
    """The token as the vocabulary writes it; None beyond the vocabulary."""
    try:
        return tokenizer.convert_ids_to_tokens(token_id)
    except (IndexError, KeyError, OverflowError):  # what tokenizers without a fast form raise there
        return None
