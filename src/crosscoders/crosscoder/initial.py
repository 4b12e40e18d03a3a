"""The directions that a crosscoder's weights begin with."""

import torch
from torch import Tensor

from crosscoders.crosscoder.config import CrosscoderConfig
from crosscoders.sources import column_slices


def initial_directions(config: CrosscoderConfig, generator: torch.Generator) -> Tensor:
    """Independent random rows [latent width] of the config's norm in each source, within its structure."""
    n, structure = config.n_latents, config.structure
    parts = [torch.randn(n, source.d_model, generator=generator) for source in config.sources]
    if structure is not None:
        drawn = torch.cat(parts, dim=1)
        structure.impose_(drawn, matrix="W_dec", sources=config.sources)
        parts = [drawn[:, columns].contiguous() for columns in column_slices(config.sources).values()]
    return torch.cat([_with_norm(part, config.decoder_init_norm) for part in parts], dim=1)


def _with_norm(rows: Tensor, norm: float) -> Tensor:
    """Rows scaled to this norm; a row that a structure holds at zero stays there."""
    found = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows * torch.where(found > 0, norm / found, 0.0)
