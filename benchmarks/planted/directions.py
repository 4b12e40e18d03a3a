"""The cheap baselines: fixed directions of the difference of two sources, each of them one claim."""

import torch
from torch import Tensor

from benchmarks.planted.measure import held_out
from benchmarks.planted.settings import Case
from crosscoders.diffing.baselines import difference_moments, difference_of_means, difference_pca
from crosscoders.diffing.planted import FeatureMatch, match_features

PRINCIPAL_AXES, DIFFERENCE_OF_MEANS = "principal axes of the difference", "difference of means"


def match_directions(case: Case) -> dict[str, FeatureMatch]:
    """Features that follow the activity along each direction; for sources of one space.

    Directions are fitted on the rows that they are scored on, which flatters them. An axis has no sign: it
    is taken so that its activity is skewed upwards, as a feature's is.

    Args:
        case: Its world gives the rows; no crosscoder is needed.
    """
    sources = case.draw_world().sources()
    moments = difference_moments((batch for batch, _ in held_out(case)), sources)
    axes = difference_pca(moments, n_components=sources[0].d_model).directions
    mean = difference_of_means(moments).vector[None]
    return {
        name: match_features(_activity(case, directions, moments.mean))
        for name, directions in ((PRINCIPAL_AXES, axes), (DIFFERENCE_OF_MEANS, mean))
    }


def _activity(case: Case, directions: Tensor, mean: Tensor) -> list[tuple[Tensor, Tensor]]:
    pairs, cut = [], len(mean)
    for batch, truth in held_out(case):
        difference = batch.rows[:, cut:].double() - batch.rows[:, :cut] - mean
        pairs.append((truth, difference @ directions.T))
    skew = torch.stack([activity.pow(3).sum(dim=0) for _, activity in pairs]).sum(dim=0)
    return [(truth, activity * skew.sign()) for truth, activity in pairs]
