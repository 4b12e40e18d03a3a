"""Everything that a run needs to go on: what its state is, and how it lies on disk."""
