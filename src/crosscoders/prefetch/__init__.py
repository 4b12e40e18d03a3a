"""Batches made in the background, in a thread or another process, while training runs."""

from crosscoders.prefetch.batches import PrefetchedBatches
from crosscoders.prefetch.waits import Waits

__all__ = ["PrefetchedBatches", "Waits"]
