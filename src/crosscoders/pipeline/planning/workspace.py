"""Estimates of what harvesting, a training step and measuring need for a moment, beside what stays.

Each number is a count of the tensors that live together at the worst moment, read off the code that makes
them. Small tensors, alignment and memory that kernels use inside are left out: hence estimates.
"""

from dataclasses import dataclass
from typing import Any

from crosscoders._typing import typed
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.planning.training_bytes import has_auxk, most_active

_FLOAT32, _FLOAT64, _INT64 = 4, 8, 8
_SCORES_ON_CPU = 4 << 20  # that the CPU's kernels form at once


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Bytes needed for a moment, estimated; no two of them at the same time.

    Args:
        reading: For each model, while it reads one group of rows.
        assembling: While the activations of all sources are brought together and the kept rows taken.
        training: During one training step, with the share of dead latents that was assumed.
        measuring: While held-out rows are encoded and decoded.
        splicing: For each model, while reconstructions are spliced in; empty without splicing.
    """

    reading: dict[str, int]
    assembling: int
    training: int
    measuring: int
    splicing: dict[str, int]


@typed
def reading_bytes(config: Any, *, n_tokens: int, itemsize: int) -> int:
    """Activations of one decoder layer at its widest, without gradient.

    In a gated feed-forward block that is act(gate), up and their product, [token, d_mlp] each, beside the
    residual stream and its normalized copy; in attention, where that is wider, the queries, keys and values
    before and after rotation.

    Args:
        config: The model's transformers config.
        n_tokens: Tokens that go through the model together.
        itemsize: Bytes of one activation.
    """
    text = config.get_text_config(decoder=True)
    d_model = int(text.hidden_size)
    d_mlp = int(getattr(text, "intermediate_size", None) or 4 * d_model)
    n_heads = int(text.num_attention_heads)
    d_head = int(getattr(text, "head_dim", None) or d_model // n_heads)
    n_kv = int(getattr(text, "num_key_value_heads", None) or n_heads)
    mlp = 3 * d_mlp + 4 * d_model
    attention = 3 * d_model + (3 * n_heads + 3 * n_kv) * d_head
    norm = 2 * d_model + 3 * d_model * _FLOAT32 // itemsize  # in float32, with its square
    return n_tokens * itemsize * max(mlp, attention, norm)


@typed
def step_bytes(config: RunConfig, *, path: str, width: int, dead_fraction: float) -> int:
    """One training step, beside what stays between two of them.

    Args:
        config: Dictionary, objective, batch and training.
        path: What `step_path` gave.
        width: Columns over all sources.
        dead_fraction: Share of the latents that AuxK finds dead.
    """
    is_low = config.training.precision == "bfloat16"
    low = 2 if is_low else _FLOAT32
    rows = config.data.batch_tokens * width * _FLOAT32
    own = 4 * rows + (rows if is_low else 0)  # raw and scaled batch, residual and its gradient; their copies
    moments = _moments(config, path, own=own, rows=rows, low=low)
    n_dead = round(dead_fraction * config.n_latents) if has_auxk(config) else 0
    if n_dead:
        dead, acts = n_dead * width * _FLOAT32, config.data.batch_tokens * n_dead * _FLOAT32
        # Their rows and gradients beside three sets of their activations; then the sums with the others'.
        moments.append(own + 3 * dead + 3 * acts + (dead if is_low else 0))
        moments.append(own + _gradient_bytes(config, path, width=width) + 5 * dead)
    return max(moments)


def _moments(config: RunConfig, path: str, *, own: int, rows: int, low: int) -> list[int]:
    """What the widest moments of a step need where no latent is dead."""
    batch, width = config.data.batch_tokens, rows // (config.data.batch_tokens * _FLOAT32)
    dense, matrix = batch * config.n_latents, config.n_latents * width
    k = most_active(config.activation_fn)
    if path == "autograd" and k is None:
        # pre-activations, latents, their gradients and a penalty's product; the decoder norms' gradient
        return [own + rows + 4 * dense * _FLOAT32 + matrix * _FLOAT32]
    if path == "autograd":
        return [own + rows + dense * _FLOAT32]
    entries = batch * (k or config.n_latents) * (_FLOAT32 + 4 * _INT64)  # values, indices, order by latent
    if path == "cpu":
        return [own + entries + 2 * min(dense, _SCORES_ON_CPU) * _FLOAT32]
    backward = own + entries + _gradient_bytes(config, path, width=width)
    if path == "triton":
        return [2 * rows + dense * low, backward]
    is_low = low < _FLOAT32
    scores = dense * (low + _FLOAT32 * (2 if is_low else 1))
    return [2 * rows + scores, backward + dense * low + (matrix * low if is_low else 0)]


def _gradient_bytes(config: RunConfig, path: str, *, width: int) -> int:
    """Gradients of both matrices where they exist only within a step."""
    is_held = path in ("autograd", "cpu")
    is_consumed = path == "triton" and config.training.max_grad_norm is None and not has_auxk(config)
    return 0 if is_held or is_consumed else 2 * config.n_latents * width * _FLOAT32


@typed
def measuring_bytes(config: RunConfig, *, width: int) -> int:
    """Encoding and decoding one group of held-out rows, with explained variance in float64.

    Args:
        config: Dictionary and group size.
        width: Columns over all sources.
    """
    n_tokens = tokens_per_harvest(config)
    rows = n_tokens * width
    encoding = 3 * rows * _FLOAT32 + 2 * n_tokens * config.n_latents * _FLOAT32  # pre-activations, scores
    comparing = 4 * rows * _FLOAT32 + 3 * rows * _FLOAT64
    return max(encoding, comparing)


@typed
def splicing_bytes(config: RunConfig, model: Any) -> int:
    """Logits while reconstructions are spliced into a model.

    Clean, spliced and ablated logits in float32 beside what the Kullback-Leibler divergence makes of two of
    them: both log-probabilities, a probability, a difference and their product.

    Args:
        config: Group size.
        model: The model's transformers config.
    """
    n_vocab = int(model.get_text_config(decoder=True).vocab_size)
    return tokens_per_harvest(config) * n_vocab * 8 * _FLOAT32


def tokens_per_harvest(config: RunConfig) -> int:
    """Tokens that go through the models together."""
    return config.data.sequences_per_harvest * config.data.sequence_length
