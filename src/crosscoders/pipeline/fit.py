"""Training a crosscoder as a run's configuration says: the buffer, the first weights, the trainer."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.buffer import ActivationBuffer
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.harvest import ModelSources
from crosscoders.losses import LossTerm
from crosscoders.pipeline.config import RunConfig, default_objective
from crosscoders.pipeline.corpus import Corpus, training_batches
from crosscoders.sources import Source
from crosscoders.training import Callback, Trainer
from crosscoders.training.warm_start import warm_start as warm_started


@typed
def fit_crosscoder(
    sources: ModelSources,
    corpus: Corpus,
    config: RunConfig,
    *,
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: Path | None = None,
    resume: bool = False,
    warm_start: Path | str | None = None,
) -> Crosscoder:
    """Train a crosscoder on the activations of a corpus.

    Args:
        sources: The models, each with its hook.
        corpus: Tokens to train on.
        config: Dictionary, objective, optimizer and buffer.
        callbacks: Observers of the training.
        checkpoint_dir: Where checkpoints go, if the config asks for them.
        resume: Go on from the newest checkpoint there; the result is that of a run without interruption.
        warm_start: Folder of a saved crosscoder to begin with, instead of at random; see
            `training.warm_start`.

    Returns:
        The trained crosscoder in evaluation mode, its threshold calibrated.
    """
    generator = torch.Generator().manual_seed(config.seed)
    buffer = training_buffer(sources, corpus, config, generator=generator)
    if warm_start is None:
        rows = first_rows(sources, corpus, config)
        crosscoder = new_crosscoder(buffer.sources, config, rows=rows, generator=generator)
    else:
        crosscoder = _begun_with(warm_start, sources=buffer.sources, config=config)
    trainer = new_trainer(
        crosscoder,
        config,
        total_tokens=tokens_of(buffer, corpus, config),
        callbacks=callbacks,
        checkpoint_dir=checkpoint_dir,
    )
    if resume and checkpoint_dir is not None:
        trainer.resume(checkpoint_dir)
    trainer.fit(buffer)
    return crosscoder.eval()


@typed
def training_buffer(
    sources: ModelSources, corpus: Corpus, config: RunConfig, *, generator: torch.Generator
) -> ActivationBuffer:
    """The buffer that serves a corpus' activations as a run's configuration says.

    Args:
        sources: The models, each with its hook.
        corpus: Tokens to train on.
        config: Its `data` counts.
        generator: Draws the order of the rows.
    """
    return ActivationBuffer(
        sources,
        training_batches(corpus, config.data),
        max_bytes=config.data.buffer_bytes,
        generator=generator,
        batch_tokens=config.data.batch_tokens,
        exclude_token_ids=corpus.exclude_token_ids,
        skip_positions=config.data.skip_positions,
        max_norm_multiple=config.data.max_norm_multiple,
        epochs=config.data.epochs,
    )


@typed
def first_rows(sources: ModelSources, corpus: Corpus, config: RunConfig) -> Float[Tensor, "batch width"]:
    """Raw activations of the first tokens that are trained on, whose mean the decoder bias starts from."""
    tokens = training_batches(corpus, config.data)[0]
    return sources.harvest(tokens)[corpus.kept(tokens, config.data)]


@typed
def new_crosscoder(
    sources: Sequence[Source],
    config: RunConfig,
    *,
    rows: Float[Tensor, "batch width"],
    generator: torch.Generator,
) -> Crosscoder:
    """A crosscoder as it begins: random directions, its decoder bias the mean of some rows.

    Args:
        sources: What it reads and writes, each with its scale.
        config: Number of latents, activation function and device.
        rows: Raw activations.
        generator: Draws the directions.
    """
    begin = CrosscoderConfig(
        sources=tuple(sources), n_latents=config.n_latents, activation_fn=config.activation_fn
    )
    crosscoder = Crosscoder(begin, generator=generator).to(config.device)
    crosscoder.initialize_bias(rows.to(config.device))
    return crosscoder


@typed
def tokens_of(buffer: ActivationBuffer, corpus: Corpus, config: RunConfig) -> int | None:
    """Length of the run on which the schedules depend; None where the buffer knows it.

    How many outliers are left out only running tells: then the schedule counts them in.

    Args:
        buffer: What will be served.
        corpus: Where it comes from.
        config: Its `training.total_tokens` has the first word.
    """
    if config.training.total_tokens is not None or buffer.n_tokens is not None:
        return config.training.total_tokens
    batches = training_batches(corpus, config.data)
    return sum(int(corpus.kept(tokens, config.data).sum()) for tokens in batches) * config.data.epochs


@typed
def new_trainer(
    crosscoder: Crosscoder,
    config: RunConfig,
    *,
    total_tokens: int | None,
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: Path | None = None,
) -> Trainer:
    """The trainer of a crosscoder as a run's configuration says.

    Args:
        crosscoder: To be trained in place.
        config: Objective, optimizer and schedule.
        total_tokens: Length of the run; None takes it from the batches.
        callbacks: Observers of the training.
        checkpoint_dir: Where checkpoints go, if the config asks for them.
    """
    objective: Sequence[LossTerm] = config.objective or default_objective(config.activation_fn)
    training = dataclasses.replace(config.training, total_tokens=total_tokens)
    return Trainer(crosscoder, objective, config=training, callbacks=callbacks, checkpoint_dir=checkpoint_dir)


def _begun_with(path: Path | str, *, sources: Sequence[Source], config: RunConfig) -> Crosscoder:
    """The saved crosscoder with this run's scales and activation function."""
    crosscoder = warm_started(path, activation_fn=config.activation_fn, sources=sources)
    if crosscoder.n_latents != config.n_latents:
        raise ValueError(
            f"warm start from {path}: it has {crosscoder.n_latents} latents, the configuration asks for "
            f"{config.n_latents}; set n_latents={crosscoder.n_latents}."
        )
    return crosscoder.to(config.device)
