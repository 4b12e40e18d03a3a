"""Over-thinking and incisive thinking by steering, beside random and wrong-category directions."""

from crosscoders.experiments.steering.experiment import SteeringOptions, steering_experiment

__all__ = ["SteeringOptions", "steering_experiment"]
