"""What the latents at both ends of NRN fire on, beside random latents that fire as often."""

from crosscoders.experiments.annotation.experiment import AnnotationOptions, annotation_experiment

__all__ = ["AnnotationOptions", "annotation_experiment"]
