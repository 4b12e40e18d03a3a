"""Train the crosscoders that the benchmark judges; each is a function of its case alone."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.planted.settings import BATCH_TOKENS, BIAS_TOKENS, INIT, TRAIN_ROWS, TRAIN_TOKENS, Case
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.sources import Source, scale_from_mean_norm
from crosscoders.training import DifferenceBatches, Trainer, TrainerConfig


def train(case: Case, *, n_tokens: int = TRAIN_TOKENS) -> Crosscoder:
    """Train the case's crosscoder on fresh rows of its world."""
    world, generator = case.draw_world(), case.generator(TRAIN_ROWS)
    sources = world.sources()
    rows, _ = world.sample(BIAS_TOKENS, generator)

    def batches() -> Iterator[Tensor]:
        return world.batches(n_tokens, generator=generator, batch_tokens=BATCH_TOKENS)

    if case.recipe.of_difference:
        first = DifferenceBatches([rows], sources)
        rows = next(iter(first))
        scale = scale_from_mean_norm(float(rows.norm(dim=1).mean()), rows.shape[1])
        return _fit(
            case,
            (Source(name=first.source.name, d_model=rows.shape[1], scale=scale),),
            rows,
            DifferenceBatches(batches(), sources),
            n_tokens,
        )
    return _fit(case, sources, rows, batches(), n_tokens)


def _fit(
    case: Case, sources: tuple[Source, ...], rows: Tensor, batches: Iterable[Tensor], n_tokens: int
) -> Crosscoder:
    recipe = case.recipe
    config = CrosscoderConfig(
        sources=sources,
        n_latents=recipe.n_latents,
        activation_fn=recipe.activation_fn,
        structure=recipe.structure,
    )
    crosscoder = Crosscoder(config, generator=case.generator(INIT))
    crosscoder.initialize_bias(rows)
    numbers = TrainerConfig(
        lr=recipe.lr, dead_after_tokens=recipe.dead_after_tokens, total_tokens=n_tokens, log_every_steps=0
    )
    Trainer(crosscoder, recipe.objective, config=numbers).fit(batches)
    return crosscoder


def train_into(case: Case, cache: Path) -> str:
    """Train and keep one crosscoder, unless the cache has it; says which it was."""
    folder = case.folder(cache)
    if folder.exists():
        return f"{case.name}: there"
    torch.set_num_threads(1)
    train(case).save_pretrained(folder)
    return f"{case.name}: trained"
