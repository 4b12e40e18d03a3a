"""The texts of a text's tokens together are the text, to the byte, whatever the tokens cut apart."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerFast

from crosscoders.reasoning.token_text import token_text, token_texts
from crosscoders.zoo import model_path
from tests.data.real_tokenizers import qwen_tokenizer, r1_tokenizer, r1_traces
from tests.data.toy_models import toy_tokenizer

TEXTS = [
    "Wait, let me check: 12 * 7 = 84.\n\n\tSo  the   answer is 84 .",
    "caf\u00e9 na\u00efve \u4e16\u754c \u3053\u3093\u306b\u3061\u306f",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f9ec\U0001f6f8 \U00020bb7\u91ce\u5c4b",
    " don't . ? ! 's n't  leading and trailing  ",
    "\ufffd \u202e\u2066\u2028\x00\x07\x7f\x85",
    "<script>alert(1)</script> <0xE4> \u2581under \u0120dot <id 7>",
]  # fmt: skip


def rejoined(tokenizer: Any, ids: list[int]) -> str:
    return "".join(token_texts(tokenizer, ids)).encode("utf-8", "surrogateescape").decode("utf-8")


def is_piece(text: str) -> bool:
    return any("\udc80" <= ch <= "\udcff" for ch in text)


@pytest.fixture(params=["qwen2.5", "r1_distill"])
def tokenizer(request: pytest.FixtureRequest, data_file: Callable[[str], Path]) -> Any:
    return {"qwen2.5": qwen_tokenizer, "r1_distill": r1_tokenizer}[request.param](data_file)


@pytest.fixture(scope="module")
def tiny() -> Any:
    """The bundled pair's tokenizer: one token a word, its space in front as sentencepiece writes it."""
    return PreTrainedTokenizerFast.from_pretrained(model_path("tiny-reasoner", "base"))


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokens_of_a_text_make_the_text(tokenizer: Any, text: str) -> None:
    assert rejoined(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_an_emoji_split_over_tokens_shows_its_bytes(data_file: Callable[[str], Path]) -> None:
    tokenizer = qwen_tokenizer(data_file)
    pieces = token_texts(tokenizer, tokenizer("\U0001f9ec")["input_ids"])
    assert len(pieces) > 1
    assert all(is_piece(piece) for piece in pieces)
    assert "\ufffd" not in "".join(pieces)


def test_the_tokens_of_a_real_trace_make_the_trace(data_file: Callable[[str], Path]) -> None:
    tokenizer, trace = r1_tokenizer(data_file), r1_traces(data_file)[0]
    assert rejoined(tokenizer, tokenizer(trace, add_special_tokens=False)["input_ids"]) == trace


def test_every_byte_has_a_token_of_its_own(data_file: Callable[[str], Path]) -> None:
    """Byte-level vocabularies hold all 256, so every one must come out, each once."""
    tokenizer = qwen_tokenizer(data_file)
    texts = token_texts(tokenizer, range(256))
    assert sorted(text.encode("utf-8", "surrogateescape") for text in texts) == [
        bytes([b]) for b in range(256)
    ]


def test_what_decodes_cleanly_is_what_the_tokenizer_says(tokenizer: Any) -> None:
    """Over a stretch of the vocabulary, special tokens at its end among them."""
    n = len(tokenizer)
    for at in [*range(0, n, max(1, n // 3000)), *range(max(0, n - 30), n)]:
        said = tokenizer.decode([at], skip_special_tokens=False)
        if "\ufffd" not in said:
            assert token_text(tokenizer, at) == said


def test_the_bundled_tokenizer_keeps_the_space_before_each_word(tiny: Any) -> None:
    text = "Wait, let me check 12 + 7 = 84. But the answer is 8."
    assert rejoined(tiny, tiny(text)["input_ids"]) == f" {text}"
    assert token_text(tiny, tiny.convert_tokens_to_ids("\u2581Wait")) == " Wait"
    assert token_text(tiny, 129) == "<id 129>"


def test_special_tokens_are_shown(tokenizer: Any) -> None:
    end = tokenizer.eos_token_id
    assert token_text(tokenizer, end) == tokenizer.eos_token


def test_ids_beyond_the_vocabulary_are_named(tokenizer: Any) -> None:
    for beyond in (len(tokenizer) + 500, 10**6):
        assert token_text(tokenizer, beyond) == f"<id {beyond}>"
    with pytest.raises(ValueError, match="at least 0, got -1"):
        token_text(tokenizer, -1)


def sentencepiece(pieces: list[str], *, strip: int = 1) -> PreTrainedTokenizerFast:
    """A tokenizer with byte fallback that drops the space at the start of a decoded text, as Llama's does."""
    bare = Tokenizer(BPE({piece: at for at, piece in enumerate(pieces)}, [], byte_fallback=True))
    spaces, start = decoders.Replace("\u2581", " "), decoders.Strip(" ", strip, 0)
    bare.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), start])
    return PreTrainedTokenizerFast(tokenizer_object=bare)


def test_sentencepiece_keeps_its_spaces_and_shows_its_bytes() -> None:
    spaced = ["\u2581the", "the", "\u2581", "\u2581\u2581\u2581", "a\u2581b"]
    pieces = [*spaced, "<0xE4>", "<0x0A>", "<0x41>", "\ufffd"]
    expected = [" the", "the", " ", "   ", "a b", "\udce4", "\n", "A", "\ufffd"]
    assert token_texts(sentencepiece(pieces), range(9)) == expected
    assert token_texts(sentencepiece(pieces, strip=0), range(9)) == expected


def test_bytes_that_make_a_character_join_to_it() -> None:
    tokenizer = sentencepiece([f"<0x{byte:02X}>" for byte in range(256)])
    text = "a\u00e9\u4e16\U0001f600"
    assert rejoined(tokenizer, list(text.encode())) == text


def test_a_token_that_only_looks_like_a_byte_is_its_own_text() -> None:
    words = Tokenizer(WordLevel({"<0xE4>": 0, "\u0120x": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    assert token_texts(tokenizer, range(2)) == ["<0xE4>", "\u0120x"]


def test_a_vocabulary_of_plain_words() -> None:
    assert token_texts(toy_tokenizer(), [5, 6, 1]) == ["w5", "w6", "<eos>"]
    assert token_texts(toy_tokenizer(), []) == []
