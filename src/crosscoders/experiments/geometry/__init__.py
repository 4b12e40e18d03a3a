"""Feature geometry of both models: word-pair parallelograms and structure measures."""

from crosscoders.experiments.geometry.experiment import GeometryOptions, geometry_experiment

__all__ = ["GeometryOptions", "geometry_experiment"]
