"""Feature geometry: parallelogram loss of word pairs, and structure measures of activations and decoders."""

from crosscoders.geometry.parallelogram import SCALES, parallelogram_loss
from crosscoders.geometry.probe import GeometryProbe
from crosscoders.geometry.results import (
    LossDifference,
    ParallelogramDifference,
    ParallelogramResult,
    ParallelogramScore,
)
from crosscoders.geometry.structure import (
    ActivationCovariance,
    cosine_structure_correlation,
    effective_dimension,
    leading_axes,
    linear_cka,
    nearest_cosines,
    spectrum,
    subspace_overlap,
)
from crosscoders.geometry.word_pairs import PAPER_TASKS, WordTask, read_word_tasks
from crosscoders.geometry.word_vectors import WordVectors

__all__ = [
    "PAPER_TASKS",
    "SCALES",
    "ActivationCovariance",
    "GeometryProbe",
    "LossDifference",
    "ParallelogramDifference",
    "ParallelogramResult",
    "ParallelogramScore",
    "WordTask",
    "WordVectors",
    "cosine_structure_correlation",
    "effective_dimension",
    "leading_axes",
    "linear_cka",
    "nearest_cosines",
    "parallelogram_loss",
    "read_word_tasks",
    "spectrum",
    "subspace_overlap",
]
