"""Diffing: measures of every latent, planted truth, nulls, verdicts and what the difference causes."""

from crosscoders.diffing.attribution.relie import RelIE, relie
from crosscoders.diffing.attribution.targets import Attribution, attribute
from crosscoders.diffing.baselines import (
    difference_moments,
    difference_of_means,
    difference_pca,
    logit_differences,
)
from crosscoders.diffing.batches import MeasureBatch
from crosscoders.diffing.causal import CausalCheck, causal_check
from crosscoders.diffing.measures.alignment import Alignment, alignment
from crosscoders.diffing.measures.decodability import Decodability, decodability
from crosscoders.diffing.measures.free_direction import FreeDirection, free_direction
from crosscoders.diffing.measures.linear_map import fit_linear_map
from crosscoders.diffing.measures.moments import Moments, collect_moments
from crosscoders.diffing.measures.off_activity import OffActivity, off_activity
from crosscoders.diffing.measures.reuse import Reuse, reuse
from crosscoders.diffing.measures.scaling import LatentScaling, latent_scaling
from crosscoders.diffing.measures.stability import Stability, stability
from crosscoders.diffing.measures.swap import SwapReadout, swap_readout
from crosscoders.diffing.measures.twins import Twins, twins
from crosscoders.diffing.planted import PlantedConfig, PlantedCounts, PlantedWorld, match_features, score
from crosscoders.diffing.planted.spike_in import SpikeIn, Spikes, typical_strength
from crosscoders.diffing.verdicts import (
    Judgement,
    NullReference,
    Power,
    Thresholds,
    Verdicts,
    gather_evidence,
    judge,
    judge_all,
    null_reference,
)

__all__ = [
    "Alignment",
    "Attribution",
    "CausalCheck",
    "Decodability",
    "FreeDirection",
    "Judgement",
    "LatentScaling",
    "MeasureBatch",
    "Moments",
    "NullReference",
    "OffActivity",
    "PlantedConfig",
    "PlantedCounts",
    "PlantedWorld",
    "Power",
    "RelIE",
    "Reuse",
    "SpikeIn",
    "Spikes",
    "Stability",
    "SwapReadout",
    "Thresholds",
    "Twins",
    "Verdicts",
    "alignment",
    "attribute",
    "causal_check",
    "collect_moments",
    "decodability",
    "difference_moments",
    "difference_of_means",
    "difference_pca",
    "fit_linear_map",
    "free_direction",
    "gather_evidence",
    "judge",
    "judge_all",
    "latent_scaling",
    "logit_differences",
    "match_features",
    "null_reference",
    "off_activity",
    "relie",
    "reuse",
    "score",
    "stability",
    "swap_readout",
    "twins",
    "typical_strength",
]
