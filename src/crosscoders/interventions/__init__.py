"""Interventions on a model's residual stream: adding directions, splicing in reconstructions."""

from crosscoders.interventions.directions import AddVector, random_vector_like
from crosscoders.interventions.scores import SpliceScores, splice_scores
from crosscoders.interventions.splice import spliced_logits
from crosscoders.interventions.steering import SteeringHook

__all__ = [
    "AddVector",
    "SpliceScores",
    "SteeringHook",
    "random_vector_like",
    "splice_scores",
    "spliced_logits",
]
