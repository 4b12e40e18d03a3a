"""Activations on disk: `ActivationStore`, which a run reads, fills, or fills as it goes."""

from crosscoders.store.store import ActivationStore

__all__ = ["ActivationStore"]
