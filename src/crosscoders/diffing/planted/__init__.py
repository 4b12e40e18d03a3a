"""Planted truth: synthetic activations with known features, and how many of them a method found."""

from crosscoders.diffing.planted.config import KINDS, Kind, PlantedConfig, PlantedCounts
from crosscoders.diffing.planted.features import PlantedFeature
from crosscoders.diffing.planted.matching import RECOVERED_CORRELATION, FeatureMatch, match_features
from crosscoders.diffing.planted.scoring import RIGHT_VERDICT, SPECIFIC, UNDECIDED, nearest_rate, score
from crosscoders.diffing.planted.tables import KindScore, PlantedScore, SpecificScore, pool_scores
from crosscoders.diffing.planted.world import SEQUENCE_TOKENS, PlantedWorld

__all__ = [
    "KINDS",
    "RECOVERED_CORRELATION",
    "RIGHT_VERDICT",
    "SEQUENCE_TOKENS",
    "SPECIFIC",
    "UNDECIDED",
    "FeatureMatch",
    "Kind",
    "KindScore",
    "PlantedConfig",
    "PlantedCounts",
    "PlantedFeature",
    "PlantedScore",
    "PlantedWorld",
    "SpecificScore",
    "match_features",
    "nearest_rate",
    "pool_scores",
    "score",
]
