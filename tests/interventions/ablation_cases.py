"""Two toy models of unequal width under one crosscoder, and their ablation worked out by hand."""

import torch
from torch import Tensor

from crosscoders.activation_fns import ReLU
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.harvest import ModelSources, load_sources
from crosscoders.interventions.ablation.occurrences import Occurrences
from crosscoders.sources import Source
from tests.data.toy_models import random_tokens, toy_model

HOOKS = {"base": "blocks.1.hook_resid_pre", "distilled": "blocks.1.hook_resid_post"}
WIDTHS, SCALES = {"base": 16, "distilled": 8}, {"base": 2.0, "distilled": 0.25}
COLUMNS = {"base": slice(0, 16), "distilled": slice(16, 24)}
N_LATENTS, SILENT = 20, 7  # the silent latent never fires
TOKENS = random_tokens(4, 9)


def toy_sources() -> ModelSources:
    models = {name: toy_model(d_model=width, seed=len(name)) for name, width in WIDTHS.items()}
    return load_sources(models, hook_name=HOOKS)


def toy_crosscoder() -> Crosscoder:
    sources = tuple(
        Source(name=n, d_model=WIDTHS[n], hook_name=HOOKS[n], scale=SCALES[n]) for n in ("base", "distilled")
    )
    crosscoder = Crosscoder(
        CrosscoderConfig(sources=sources, n_latents=N_LATENTS, activation_fn=ReLU(), decoder_init_norm=1.0)
    )
    with torch.no_grad():
        crosscoder.b_enc[SILENT] = -1e9
        crosscoder.W_dec.mul_(torch.linspace(0.3, 1.2, N_LATENTS)[:, None])
    return crosscoder.eval()


def at(*places: tuple[int, int]) -> Occurrences:
    rows, positions = torch.tensor(places).T
    return Occurrences(rows=rows, positions=positions, n_available=len(places), n_asked=len(places))


def codes_by_hand(crosscoder: Crosscoder, activations: Tensor) -> Tensor:
    """ReLU codes [batch pos latent] in float64."""
    scale = torch.tensor([SCALES["base"]] * 16 + [SCALES["distilled"]] * 8, dtype=torch.float64)
    pre = (activations.double() * scale) @ crosscoder.W_enc.detach().double().T + crosscoder.b_enc.double()
    return pre.clamp(min=0).detach()


def logits_by_hand(sources: ModelSources, source: str, row: int, stream: Tensor) -> Tensor:
    """Logits [pos vocab] of a whole row in float64, its stream at the hook given, by torch's own hooks."""
    model = toy_model(d_model=WIDTHS[source], seed=len(source)).double()
    layer = model.model.layers[1]

    def before(module: object, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return (stream[None], *args[1:]), kwargs

    if source == "base":
        handle = layer.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = layer.register_forward_hook(lambda module, args, output: stream[None])
    with torch.no_grad():
        logits = model(input_ids=TOKENS[row][None]).logits[0]
    handle.remove()
    return logits
