"""The causal check: how much of the way to the other model a set of latents goes when it is patched in."""

from crosscoders.diffing.causal.check import causal_check
from crosscoders.diffing.causal.result import CausalCheck, ControlScore, PatchScore, SetScore

__all__ = ["CausalCheck", "ControlScore", "PatchScore", "SetScore", "causal_check"]
