"""Structures: what some latents of a crosscoder are held to, one file each; a new one needs no edit here."""

from crosscoders.structures.base import Structure, structure_from_dict
from crosscoders.structures.dedicated_latents import DedicatedLatents
from crosscoders.structures.shared_latents import SharedLatents

__all__ = ["DedicatedLatents", "SharedLatents", "Structure", "structure_from_dict"]
