"""Hooked models + tokens -> activations of all sources side by side; no shuffling, no state."""

from crosscoders.harvest.loading import load_sources
from crosscoders.harvest.model_sources import ModelSources
from crosscoders.harvest.split import SplitHarvest

__all__ = ["ModelSources", "SplitHarvest", "load_sources"]
