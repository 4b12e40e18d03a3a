"""Bundled model families whose every token's function is known, and the recipes that made them.

The functions that write words and steps run some fifty times per document and are left without `@typed`:
checking them would take several times as long as writing. Those that make or read whole documents have it.
"""

from pathlib import Path

from crosscoders._typing import typed

FAMILIES: dict[str, tuple[str, ...]] = {"tiny-reasoner": ("base", "distilled", "null")}


@typed
def model_path(family: str, member: str) -> Path:
    """Folder of a bundled checkpoint, which `load_sources` and `transformers` load like any other.

    Args:
        family: "tiny-reasoner".
        member: "base", "distilled", or "null" (the base trained on with the same schedule on more base text).

    Returns:
        The folder; it is not looked at.

    Raises:
        ValueError: No such family or member.
    """
    if member not in FAMILIES.get(family, ()):
        known = {name: list(members) for name, members in FAMILIES.items()}
        raise ValueError(f"zoo.model_path: no checkpoint {family!r}/{member!r}; bundled are {known}.")
    return Path(__file__).parent / family.replace("-", "_") / member
