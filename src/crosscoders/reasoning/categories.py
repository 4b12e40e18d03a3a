"""The paper's four reasoning categories and the phrases that open them."""

CATEGORIES: tuple[str, ...] = ("self-reflection", "deductive", "alternative", "contrastive")

LEXICON: dict[str, tuple[str, ...]] = {
    "self-reflection": ("Wait", "Hmm", "Hold on", "Let me check", "Let me double-check"),
    "deductive": ("Therefore", "Thus", "So", "Hence"),
    "alternative": ("Alternatively", "Another way", "Another approach"),
    "contrastive": ("But", "However", "Yet"),
}
