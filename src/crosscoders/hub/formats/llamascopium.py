"""Llamascopium (OpenMOSS) crosscoders: recognized, and refused with the reason."""

from typing import NoReturn

from crosscoders.errors import CheckpointError
from crosscoders.hub.formats.files import ForeignFile
from crosscoders.hub.formats.result import Given


def matches(file: ForeignFile) -> bool:
    """Whether there is an encoder with a head axis and a bias per head."""
    return len(file.shapes.get("W_E", ())) == 3 and len(file.shapes.get("b_E", ())) == 2


def read(file: ForeignFile, given: Given) -> NoReturn:
    """Refuse: its codes are gated per head.

    Raises:
        CheckpointError: Always.
    """
    raise CheckpointError(
        f"{file.path}: Llamascopium gates its codes per head, f^h = act(pre * |d_h|) / |d_h|, so "
        "one latent has "
        f"{file.shapes['W_E'][0]} activations at a token; a crosscoder here has one, and no "
        "choice of selection "
        "weight and threshold gives the same."
    )
