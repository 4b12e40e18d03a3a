"""Interventions on the residual stream: editing latents, adding vectors, ablation, sweeps, splicing."""

from crosscoders.interventions.ablation import (
    AblationEffects,
    LatentEdit,
    Occurrences,
    ablation_effects,
    choose_occurrences,
    matched_random_sets,
    shuffled_identity,
    single_token_id,
    target_energy,
    threshold_set,
)
from crosscoders.interventions.directions import AddVector, random_vector_like
from crosscoders.interventions.edits import Ablate, Add, Clamp, Edit, Scale
from crosscoders.interventions.scores import SpliceScores, splice_scores
from crosscoders.interventions.splice import spliced_logits
from crosscoders.interventions.steering import SteeringHook
from crosscoders.interventions.sweeps import (
    BoxedGrader,
    Direction,
    Grader,
    GSM8KGrader,
    RegimeBounds,
    SweepOptions,
    SweepResult,
    additive_direction,
    random_directions,
    sweep,
    unembedding_direction,
)

__all__ = [
    "Ablate",
    "AblationEffects",
    "Add",
    "AddVector",
    "BoxedGrader",
    "Clamp",
    "Direction",
    "Edit",
    "GSM8KGrader",
    "Grader",
    "LatentEdit",
    "Occurrences",
    "RegimeBounds",
    "Scale",
    "SpliceScores",
    "SteeringHook",
    "SweepOptions",
    "SweepResult",
    "ablation_effects",
    "additive_direction",
    "choose_occurrences",
    "matched_random_sets",
    "random_directions",
    "random_vector_like",
    "shuffled_identity",
    "single_token_id",
    "splice_scores",
    "spliced_logits",
    "sweep",
    "target_energy",
    "threshold_set",
    "unembedding_direction",
]
