"""A pair of toy models with crosscoders over them, and greedy decoding under edits made by hand."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from crosscoders.activation_fns import ActivationFn
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.harvest import ModelSources, load_sources
from crosscoders.models import LanguageModel
from crosscoders.sources import Source
from tests.data.toy_models import random_tokens, toy_model, toy_tokenizer

HOOKS = {"base": "blocks.2.hook_resid_pre", "distilled": "blocks.1.hook_resid_post"}
SCALES = {"base": 0.5, "distilled": 0.25}
PROMPTS = [random_tokens(n, seed=n).tolist() for n in (4, 2, 6, 1)]


def pair(**models: nn.Module) -> ModelSources:
    """Two toy models that differ in their weights; either may be given."""
    both = {"base": toy_model(seed=1), "distilled": toy_model()} | models
    return load_sources(both, hook_name=HOOKS, tokenizer=toy_tokenizer())


def paired_crosscoder(activation_fn: ActivationFn, *, widths: tuple[int, int] = (16, 16)) -> Crosscoder:
    """An untrained crosscoder of the pair, encoder and decoder apart, with large decoder rows."""
    sources = tuple(
        Source(name=name, d_model=width, hook_name=HOOKS[name], scale=SCALES[name])
        for name, width in zip(HOOKS, widths, strict=True)
    )
    config = CrosscoderConfig(
        sources=sources, n_latents=24, activation_fn=activation_fn, decoder_init_norm=0.8
    )
    crosscoder = Crosscoder(config).eval()
    with torch.no_grad():
        crosscoder.b_enc.copy_(0.3 * torch.randn(24, generator=torch.Generator().manual_seed(1)))
        crosscoder.W_enc.mul_(0.5)
        crosscoder.b_dec.fill_(0.1)
    return crosscoder


def hook_count(module: nn.Module) -> int:
    """Hooks on a model and everything in it."""
    return sum(len(child._forward_hooks) + len(child._forward_pre_hooks) for child in module.modules())


def dense(crosscoder: Crosscoder, x_raw: Tensor) -> Tensor:
    """Latents [batch latent] of raw activations [batch width]."""
    latents = crosscoder.encode(x_raw)
    return (latents if isinstance(latents, Tensor) else latents.to_dense()).detach()


def codes_by_hand(crosscoder: Crosscoder, sources: ModelSources, tokens: Tensor, codes: str) -> Tensor:
    """Latents [batch pos latent] as an edit of "distilled" reads them, from whole unedited forwards."""
    base, distilled = sources.harvest(tokens).flatten(0, 1).split(16, dim=1)
    columns = {
        "lockstep": [base, distilled],
        "swap": [distilled * SCALES["distilled"] / SCALES["base"], distilled],
        "own": [torch.zeros_like(base), distilled],
    }[codes]
    return dense(crosscoder, torch.cat(columns, dim=1)).unflatten(0, tokens.shape)


def greedy_by_hand(
    model: LanguageModel, prompt: list[int], *, addition: Callable[[Tensor], Tensor], n: int
) -> list[int]:
    """Greedy decoding without cache or padding; what "distilled"'s stream gets is made anew each step."""
    tokens = list(prompt)
    for _ in range(n):
        added = addition(torch.tensor([tokens]))
        with model.edit(HOOKS["distilled"], lambda stream, added=added: stream + added):
            tokens.append(int(model.logits(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]
