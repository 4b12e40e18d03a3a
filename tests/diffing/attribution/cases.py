"""Two GPT-2 models of unequal width under one crosscoder, all in float64, and ablation worked out by hand.

GPT-2 because its layer norms stay in float64; the RMS norms of other toy models round to float32.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from crosscoders.activation_fns import ReLU
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.harvest import ModelSources, load_sources
from crosscoders.interventions import Occurrences
from crosscoders.sources import Source
from tests.data.toy_models import N_VOCAB, random_tokens

HOOKS = {"base": "blocks.1.hook_resid_pre", "distilled": "blocks.1.hook_resid_post"}
WIDTHS, SCALES = {"base": 16, "distilled": 8}, {"base": 2.0, "distilled": 0.25}
COLUMNS = {"base": slice(0, 16), "distilled": slice(16, 24)}
N_LATENTS, SILENT = 20, 7  # the silent latent never fires
TOKENS = random_tokens(4, 9)
PLACES = ((0, 3), (2, 8), (0, 7), (3, 1))  # (row, position) of each target
OTHER = 9  # the token that a target is compared with


def toy_gpt2(name: str) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=N_VOCAB, n_embd=WIDTHS[name], n_layer=3, n_head=2, n_positions=64, initializer_range=0.3,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        return GPT2LMHeadModel(config).double().eval()


def toy_sources() -> ModelSources:
    return load_sources({name: toy_gpt2(name) for name in WIDTHS}, hook_name=HOOKS)


def toy_crosscoder() -> Crosscoder:
    sources = tuple(Source(name=n, d_model=WIDTHS[n], hook_name=HOOKS[n], scale=SCALES[n]) for n in WIDTHS)
    crosscoder = Crosscoder(
        CrosscoderConfig(sources=sources, n_latents=N_LATENTS, activation_fn=ReLU(), decoder_init_norm=1.0)
    )
    with torch.no_grad():
        crosscoder.b_enc[SILENT] = -1e9
        crosscoder.W_dec.mul_(torch.linspace(0.1, 0.4, N_LATENTS)[:, None])
    return crosscoder.double().eval()


def targets() -> Occurrences:
    rows, positions = torch.tensor(PLACES).T
    return Occurrences(rows=rows, positions=positions, n_available=len(PLACES), n_asked=len(PLACES))


def stream_of(sources: ModelSources, source: str) -> Tensor:
    """The residual stream [batch pos d_model] at a source's hook, in float64."""
    return sources.models[source].capture(TOKENS, [HOOKS[source]])[HOOKS[source]]


def contributions(crosscoder: Crosscoder, sources: ModelSources, source: str) -> tuple[Tensor, Tensor]:
    """Codes [batch pos latent], and a source's raw decoder rows [latent d_model]."""
    scale = torch.tensor([SCALES["base"]] * 16 + [SCALES["distilled"]] * 8, dtype=torch.float64)
    x = sources.harvest(TOKENS).double() * scale
    f = (x @ crosscoder.W_enc.detach().T + crosscoder.b_enc.detach()).clamp(min=0)
    return f, crosscoder.W_dec.detach()[:, COLUMNS[source]] / SCALES[source]


_model_by_hand = functools.cache(toy_gpt2)


@torch.no_grad()
def metric_by_hand(source: str, row: int, position: int, stream: Tensor) -> float:
    """Logit of the token at a position minus that of OTHER, the row's stream [pos d_model] being given."""
    model = _model_by_hand(source)
    layer = model.transformer.h[1]

    def before(module: object, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return (stream[None], *args[1:]), kwargs

    def after(module: object, args: tuple, output: Any) -> Any:
        return (stream[None], *output[1:]) if isinstance(output, tuple) else stream[None]

    if source == "base":
        handle = layer.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = layer.register_forward_hook(after)
    logits = model(input_ids=TOKENS[row][None]).logits[0, position - 1]
    handle.remove()
    return float(logits[TOKENS[row, position]] - logits[OTHER])


def lost_by_hand(
    crosscoder: Crosscoder, sources: ModelSources, source: str, latents: list[int]
) -> list[float]:
    """What each target's metric loses where some latents are taken out of every token of the row."""
    f, rows = contributions(crosscoder, sources, source)
    clean = stream_of(sources, source)
    without = clean - f[..., latents] @ rows[latents]
    return [
        metric_by_hand(source, row, position, clean[row])
        - metric_by_hand(source, row, position, without[row])
        for row, position in PLACES
    ]
