"""Figures of a run and of the experiments, one file per subject."""
