"""Taking latents out of a model and reading what it does to the logits of chosen tokens."""

from crosscoders.interventions.ablation.effects import (
    AblationEffects,
    LatentEdit,
    TargetScores,
    ablation_effects,
)
from crosscoders.interventions.ablation.latent_sets import (
    MatchedSets,
    identity_donors,
    matched_random_sets,
    shuffled_identity,
    target_energy,
    threshold_set,
)
from crosscoders.interventions.ablation.occurrences import (
    Occurrences,
    choose_occurrences,
    single_token_id,
)

__all__ = [
    "AblationEffects",
    "LatentEdit",
    "MatchedSets",
    "Occurrences",
    "TargetScores",
    "ablation_effects",
    "choose_occurrences",
    "identity_donors",
    "matched_random_sets",
    "shuffled_identity",
    "single_token_id",
    "target_energy",
    "threshold_set",
]
