"""Cheap baselines that a crosscoder must beat: means, principal axes and logits of the difference."""

from crosscoders.diffing.baselines.logits import LogitDifferences, TokenDifference, logit_differences
from crosscoders.diffing.baselines.means import DifferenceOfMeans, difference_of_means
from crosscoders.diffing.baselines.moments import DifferenceMoments, difference_moments
from crosscoders.diffing.baselines.pca import DifferencePCA, difference_pca

__all__ = [
    "DifferenceMoments",
    "DifferenceOfMeans",
    "DifferencePCA",
    "LogitDifferences",
    "TokenDifference",
    "difference_moments",
    "difference_of_means",
    "difference_pca",
    "logit_differences",
]
