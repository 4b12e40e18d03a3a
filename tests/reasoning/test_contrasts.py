"""Phrases as token sequences: whole words only, where the tokenizer lets that be told."""

import torch
from transformers import AutoTokenizer

from crosscoders.reasoning import LexicalAnnotator, lexical_contrasts, read_lexicon
from tests.data.toy_models import toy_tokenizer


def starts(text_tokens: list[int], tokenizer, phrase: str) -> list[int]:
    tokens = torch.tensor([text_tokens])
    return (
        lexical_contrasts(tokens, tokenizer, lexicon={"c": (phrase,)})["marker/c"][0]
        .nonzero()
        .flatten()
        .tolist()
    )


def test_words_of_a_word_level_tokenizer_are_whole():
    assert starts([5, 6, 7, 5], toy_tokenizer(), "w5 w6") == [0]
    assert starts([5, 6, 7, 5], toy_tokenizer(), "w5") == [0, 3]


def test_the_beginning_or_end_of_a_longer_word_is_no_phrase(data_file):
    tokenizer = AutoTokenizer.from_pretrained(data_file("tokenizers/qwen2.5"))
    cases = {
        "Butler ran": "But", "Yeti": "Yet", " Waiter": "Wait", "But no": "But", "But, no": "But",
        "x. But\nno": "But", "Let me checkered": "Let me check",
    }  # fmt: skip
    words = LexicalAnnotator(read_lexicon())
    for text, phrase in cases.items():
        ids = tokenizer.encode(text, add_special_tokens=False)
        whole = any(text[o.start : o.stop] == phrase for o in words.openers(text))
        assert len(starts(ids, tokenizer, phrase)) == whole, text
    inside = tokenizer.encode("Al", add_special_tokens=False) + tokenizer.encode(
        "So", add_special_tokens=False
    )
    assert starts(inside, tokenizer, "So") == []


def test_the_onset_before_a_longer_word_is_none_either(data_file):
    tokenizer = AutoTokenizer.from_pretrained(data_file("tokenizers/qwen2.5"))
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in (". Waiter", ". Wait .")]
    for row, any_onset in zip(ids, (False, True)):
        found = lexical_contrasts(torch.tensor([row]), tokenizer)["onset/self-reflection"]
        assert (1 in found) == any_onset
