"""Text as one line that shows what is in it."""

from crosscoders._typing import typed


@typed
def visible(text: str) -> str:
    """Line breaks, control and direction-changing characters as escapes; everything printable as it is.

    Args:
        text: Any text, such as one token's.
    """
    return "".join(ch if ch.isprintable() else ch.encode("unicode_escape").decode() for ch in text)
