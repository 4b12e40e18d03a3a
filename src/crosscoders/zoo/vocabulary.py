"""The words of tiny-reasoner's language, how text splits into tokens, and the tokenizer built from both.

One token is a word or an operator with the space before it, a single digit (with or without that space), or
a punctuation mark. Numbers are therefore written digit by digit and every text survives encoding and decoding
unchanged.
"""

import re
from functools import cache, lru_cache
from typing import Any

_SPACE = "\u2581"  # the tokenizer's visible space
TOKEN_PATTERN = rf"{_SPACE}?[A-Za-z]+|{_SPACE}?[0-9]|{_SPACE}?[^{_SPACE}A-Za-z0-9]"
_TOKEN = re.compile(TOKEN_PATTERN)

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unk|>"

NAMES = ("Anna", "Tom", "Mia", "Ben")
NOUNS = ("dog", "cat", "bird", "boat", "box", "cup", "card", "tree", "ball", "bell")
ADJECTIVES = ("red", "blue", "small", "old", "big", "happy")
VERBS = ("saw", "found", "held", "liked", "lost", "wanted")
PLACES = ("park", "shop", "house", "river")

_FUNCTION_WORDS = """
a again and answer Answer are at be can check could do Facts First for found go Go have I is it let many me
more must Next not of on or
Question right said says see Solution that The the Then there There they They Thoughts to walk wanted was
way We we went What Yes
Wait Hold Let Therefore Thus So Alternatively Another Or But However Yet Check word
""".split()

OPERATORS = ("+", "-", "x", "=")
PUNCTUATION = (".", ",", "?", ":")


@cache
def vocabulary() -> tuple[str, ...]:
    """Every token in id order: specials first, then words, operators, digits and punctuation."""
    words = sorted({*_FUNCTION_WORDS, *NAMES, *NOUNS, *ADJECTIVES, *VERBS, *PLACES})
    spaced = [_SPACE + word for word in (*words, *OPERATORS)]
    digits = [_SPACE + digit for digit in "0123456789"] + list("0123456789")
    return (END_OF_TEXT, UNKNOWN, *spaced, *digits, *PUNCTUATION)


@cache
def token_ids() -> dict[str, int]:
    """Map from token to id."""
    return {token: index for index, token in enumerate(vocabulary())}


def split(text: str) -> list[str]:
    """Split text into tokens exactly as the tokenizer does.

    Raises:
        ValueError: A word outside the vocabulary.
    """
    attached = text[:1] in PUNCTUATION  # a full stop or comma attaches to the word before it
    tokens = _TOKEN.findall(("" if attached else _SPACE) + text.strip().replace(" ", _SPACE))
    unknown = sorted({token for token in tokens if token not in token_ids()})
    if unknown:
        raise ValueError(
            f"zoo: {unknown} are not in tiny-reasoner's vocabulary of {len(vocabulary())} tokens "
            f"(text: {text!r})."
        )
    return tokens


@lru_cache(maxsize=1 << 16)
def encode(text: str) -> tuple[int, ...]:
    """Ids of a short text; cached, because the grammar writes the same phrases millions of times.

    Raises:
        ValueError: A word outside the vocabulary.
    """
    return tuple(token_ids()[token] for token in split(text))


def build_tokenizer() -> Any:
    """The same splitting as a `transformers.PreTrainedTokenizerFast` (end-of-text doubles as padding)."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel(dict(token_ids()), unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always", split=False),
            pre_tokenizers.Split(Regex(TOKEN_PATTERN), behavior="isolated"),
        ]
    )
    core.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token=UNKNOWN,
        model_max_length=512,
    )
