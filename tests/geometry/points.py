"""Points of word pairs for the tests of geometry."""

import torch
from torch import Tensor


def gaussian_pairs(n_pairs: int, n_dimensions: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Independent standard Gaussian inputs and outputs."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(2, n_pairs, n_dimensions, generator=generator, dtype=torch.float64)
    return points[0], points[1]


def parallel_pairs(n_pairs: int, n_dimensions: int, *, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Outputs that lie one common step from their inputs, up to Gaussian noise."""
    inputs, error = gaussian_pairs(n_pairs, n_dimensions, seed=seed)
    return inputs, inputs + 1.0 + noise * error
