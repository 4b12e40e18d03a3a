"""The recipe of tiny-reasoner: every number that decides how its three checkpoints come out."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from crosscoders._typing import typed
from crosscoders.zoo.base_text import write_base
from crosscoders.zoo.text import LabelledText
from crosscoders.zoo.traces import write_trace

REPLAY_FRACTION = 0.4  # of the documents of the distillation mixture; about 38% of its tokens


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Shape of all three checkpoints (Qwen2); `n_ctx` in tokens."""

    d_model: int = 128
    d_mlp: int = 384
    n_layers: int = 6
    n_heads: int = 4
    n_kv_heads: int = 2
    n_ctx: int = 512


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training stage.

    Args:
        name: Name of the checkpoint that it makes.
        start: Checkpoint that it continues, or None for random weights.
        mixture: Key of `MIXTURES`.
        n_steps: Optimizer steps.
        lr: Peak learning rate.
        seed: Seed of the text, and of the weights where they start at random.
        sequences_per_step: Rows per step.
        sequence_length: Tokens per row.
        warmup_steps: Steps until the peak.
        weight_decay: AdamW's decoupled decay.
        max_grad_norm: Gradients are clipped to this norm.
    """

    name: str
    start: str | None
    mixture: str
    n_steps: int
    lr: float
    seed: int
    sequences_per_step: int = 16
    sequence_length: int = 256
    warmup_steps: int = 200
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that `python -m crosscoders.zoo.train NAME` runs."""

    name: str
    architecture: Architecture
    stages: tuple[Stage, ...]


@typed
def write_distillation(rng: random.Random) -> LabelledText:
    """A document of the distillation mixture: replayed base text or a reasoning trace."""
    return write_base(rng) if rng.random() < REPLAY_FRACTION else write_trace(rng)


MIXTURES: dict[str, Callable[[random.Random], LabelledText]] = {
    "base": write_base,
    "distillation": write_distillation,
}

RECIPES: dict[str, Recipe] = {
    "tiny-reasoner": Recipe(
        name="tiny-reasoner",
        architecture=Architecture(),
        stages=(
            Stage(name="base", start=None, mixture="base", n_steps=6000, lr=3e-3, seed=1),
            Stage(name="distilled", start="base", mixture="distillation", n_steps=2500, lr=1.5e-3, seed=2),
            Stage(
                name="distilled", start="distilled", mixture="distillation", n_steps=2000, lr=1.5e-3, seed=5
            ),
            Stage(name="null", start="base", mixture="base", n_steps=2500, lr=1.5e-3, seed=3),
            Stage(name="null", start="null", mixture="base", n_steps=2000, lr=1.5e-3, seed=6),
        ),
    )
}


@typed
def documents(mixture: str, seed: int) -> Iterator[LabelledText]:
    """Endless documents of a mixture; the same seed gives the same documents.

    Args:
        mixture: Key of `MIXTURES`.
        seed: Seed of the stream.

    Raises:
        KeyError: Unknown mixture, when the first document is asked for.
    """
    rng = random.Random(f"{mixture}/{seed}")
    write = MIXTURES[mixture]
    while True:
        yield write(rng)
