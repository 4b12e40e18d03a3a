"""When planted features are on, and how strongly: a Gaussian copula with groups and parents."""

import math
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.diffing.planted.features import PlantedFeature


@final
class Firing:
    """Draws activations of planted features for tokens that are independent of each other.

    Feature `i` of group `g` is on where `sqrt(1 - c) z_i + sqrt(c) u_g > Phi^-1(1 - rate_i)`, with standard
    Gaussian `z` and `u` and `c` the correlation. One with a parent of rate `r` is on where its parent is and
    `z_i > Phi^-1(1 - rate_i / r)`: without a group, so that its rate is exactly its own.

    Args:
        features: What to draw.
        correlation: `c`, in [0, 1).
        n_groups: Number of groups.
    """

    def __init__(self, features: Sequence[PlantedFeature], *, correlation: float, n_groups: int) -> None:
        parents = [feature.parent for feature in features]
        self._child = torch.tensor([i for i, p in enumerate(parents) if p is not None], dtype=torch.int64)
        self._parent = torch.tensor([p for p in parents if p is not None], dtype=torch.int64)
        self._group = torch.tensor([f.group if f.parent is None else n_groups for f in features])
        rates = torch.tensor([f.rate for f in features], dtype=torch.float64)
        is_free = torch.ones(len(features), dtype=torch.float64).index_fill_(0, self._child, 0.0)
        rates[self._child] /= rates[self._parent].clone()
        bound = torch.distributions.Normal(0.0, 1.0).icdf(1 - rates)
        self._bound = (bound / torch.sqrt(1 - correlation * is_free)).float()
        self._common = math.sqrt(correlation / (1 - correlation))
        self._n_groups = n_groups

    @typed
    def sample(self, n_tokens: int, *, generator: torch.Generator) -> Float[Tensor, "batch _feature"]:
        """Draw the activations of some tokens.

        Args:
            n_tokens: Number of tokens.
            generator: Source of randomness, on the CPU.

        Returns:
            Zero where a feature is off, otherwise uniform in [0.5, 1.5].
        """
        own = torch.randn(n_tokens, len(self._bound), generator=generator)
        if self._common:
            common = torch.randn(n_tokens, self._n_groups, generator=generator) * self._common
            common = torch.nn.functional.pad(common, (0, 1))  # the column of those without a group
            own += common.index_select(1, self._group)
        is_on = own > self._bound
        is_on[:, self._child] &= is_on[:, self._parent]
        at = is_on.flatten().nonzero().squeeze(1)
        activations = own.zero_()
        activations.view(-1)[at] = 0.5 + torch.rand(len(at), generator=generator)
        return activations
