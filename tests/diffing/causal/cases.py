"""The causal check worked out by hand: float64 models under torch's own hooks."""

import functools

import torch
from torch import Tensor
from transformers import Qwen2ForCausalLM

from crosscoders.crosscoder import Crosscoder
from crosscoders.harvest import ModelSources
from tests.data.toy_models import random_tokens, toy_model
from tests.interventions.steering_cases import SCALES

SEEDS = {"base": 1, "distilled": 0}
COLUMNS = {"base": slice(0, 16), "distilled": slice(16, 32)}
TOKENS = random_tokens(5, 9)
MASK = torch.rand(5, 9, generator=torch.Generator().manual_seed(2)) < 0.8


@functools.cache
def double_model(source: str) -> Qwen2ForCausalLM:
    """One source's model in float64."""
    return toy_model(seed=SEEDS[source]).double()


def logits_by_hand(source: str, patched: Tensor | None) -> Tensor:
    """Logits in float64, with the stream between layers 1 and 2 replaced where MASK says so."""
    model = double_model(source)

    def after(module: object, args: tuple, output: Tensor) -> Tensor:
        return output if patched is None else torch.where(MASK[..., None], patched, output)

    handle = model.model.layers[1].register_forward_hook(after)
    with torch.no_grad():
        logits = model(input_ids=TOKENS).logits
    handle.remove()
    return logits


def streams_by_hand(sources: ModelSources) -> tuple[Tensor, dict[str, Tensor]]:
    """Activations [batch pos width] of both sources, and each one's part, in float64."""
    x = sources.harvest(TOKENS).double()
    return x, {name: x[..., columns] for name, columns in COLUMNS.items()}


def differences_by_hand(crosscoder: Crosscoder, x: Tensor, first: str, second: str) -> Tensor:
    """[batch pos latent d_model] what each latent tells apart, in float64 and raw space."""
    scale = torch.tensor([SCALES["base"]] * 16 + [SCALES["distilled"]] * 16, dtype=torch.float64)
    weight, bias = crosscoder.W_enc.detach().double(), crosscoder.b_enc.detach().double()
    f = ((x * scale) @ weight.T + bias).relu()
    rows = crosscoder.W_dec.detach().double() / scale
    return f[..., None] * (rows[:, COLUMNS[second]] - rows[:, COLUMNS[first]])


def kl_by_hand(second: str, patched: Tensor, counted: Tensor) -> Tensor:
    """Mean of KL(second || patched) over the counted tokens."""
    p, q = (logits_by_hand(second, h).softmax(dim=-1) for h in (None, patched))
    return (p * (p / q).log()).sum(dim=-1)[counted].mean()
