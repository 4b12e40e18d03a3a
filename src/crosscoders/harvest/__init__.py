"""Hooked models + tokens -> activations of all sources side by side; no shuffling, no state."""

from crosscoders.harvest.loading import load_sources
from crosscoders.harvest.model_sources import ModelSources

__all__ = ["ModelSources", "load_sources"]
