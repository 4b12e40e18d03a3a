"""The paper's four reasoning categories and the phrases that open them."""

from crosscoders.reasoning.lexicon import PACKAGED_LEXICON, parse_lexicon

CATEGORIES: tuple[str, ...] = ("self-reflection", "deductive", "alternative", "contrastive")

# The phrases of the packaged lexicon.toml; `read_lexicon` gives its patterns too, and reads edited copies.
LEXICON: dict[str, tuple[str, ...]] = {
    category: words.phrases for category, words in parse_lexicon(PACKAGED_LEXICON).items()
}
