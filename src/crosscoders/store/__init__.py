"""Activations on disk: `ActivationStore`, which a run reads, fills, or fills as it goes."""

from crosscoders.store.store import STORE_NAME, ActivationStore

__all__ = ["STORE_NAME", "ActivationStore"]
