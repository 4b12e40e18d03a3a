"""Toy models, a crosscoder over them, and random rows of text with document ends."""

import torch
from torch import Tensor

from crosscoders.activation_fns import TopK
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.harvest import ModelSources, load_sources
from tests.data.toy_models import random_tokens, toy_model, toy_tokenizer

N_LATENTS = 24
END = 1  # the toy tokenizer's <eos>


def toy_sources() -> ModelSources:
    models = {"base": toy_model(seed=0), "distilled": toy_model(seed=1)}
    return load_sources(models, hook_name="half", tokenizer=toy_tokenizer())


def toy_crosscoder(sources: ModelSources) -> Crosscoder:
    config = CrosscoderConfig(sources=sources.sources, n_latents=N_LATENTS, activation_fn=TopK(k=3))
    return Crosscoder(config, generator=torch.Generator().manual_seed(0)).eval()


def toy_rows(n_rows: int = 30, length: int = 14) -> tuple[Tensor, Tensor]:
    """Tokens, and which of them count: not document ends, not the first position."""
    tokens = random_tokens(n_rows, length)
    tokens[::3, 6] = END
    mask = tokens != END
    mask[:, 0] = False
    mask[4] = False  # a row that does not count at all
    return tokens, mask


def dense_latents(crosscoder: Crosscoder, sources: ModelSources, tokens: Tensor, mask: Tensor) -> Tensor:
    """Every latent at every token [row pos latent], zero where the token does not count: all at once."""
    with torch.no_grad():
        latents = crosscoder.encode(sources.harvest(tokens).flatten(0, 1))
    dense = latents if isinstance(latents, Tensor) else latents.to_dense()
    return dense.view(*tokens.shape, -1) * mask[..., None]
