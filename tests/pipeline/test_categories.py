"""A category's latent is chosen by its scores, and by nothing where there are none."""

import pytest
import torch

from crosscoders.pipeline.categories import _best


def test_the_best_latent_has_the_highest_score_that_exists() -> None:
    assert _best(torch.tensor([torch.nan, 0.4, 0.9, torch.nan]), question="onset/deductive") == 2


def test_no_latent_is_chosen_without_a_score() -> None:
    with pytest.raises(ValueError, match="no latent has a score for 'onset/deductive'"):
        _best(torch.full((3,), torch.nan), question="onset/deductive")
