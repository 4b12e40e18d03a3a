"""Training a crosscoder as a run's configuration says: the buffer, the first weights, the trainer."""

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.harvest import ModelSources
from crosscoders.losses import LossTerm
from crosscoders.pipeline.config import RunConfig, default_objective
from crosscoders.pipeline.corpus import Corpus, training_batches
from crosscoders.pipeline.rows import training_rows
from crosscoders.sources import Source
from crosscoders.training import Callback, Trainer
from crosscoders.training.batches import SizedBatches
from crosscoders.training.checkpoints.files import has_checkpoint
from crosscoders.training.preemption import interruptible
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
    data_seed: int | None = None,
    mesh: DeviceMesh | None = None,
) -> Crosscoder:
    """Train a crosscoder on the activations of a corpus.

    Args:
        sources: The models, each with its hook.
        corpus: Tokens to train on.
        config: Dictionary, objective, optimizer and buffer.
        callbacks: Observers of the training.
        checkpoint_dir: Where checkpoints go, if the config asks for them.
        resume: Go on from the newest checkpoint there, or begin where there is none; the result is that of a
            run without interruption.
        warm_start: Folder of a saved crosscoder to begin with, instead of at random; see
            `training.warm_start`.
        data_seed: Seed of the order in which the rows are served; None for the config's seed. The first
            weights depend on the config's alone.
        mesh: Ranks that train together, each of which calls this; None for one process.

    Returns:
        The trained crosscoder, whole on every rank, in evaluation mode, its threshold calibrated.
    """
    order = config.seed if data_seed is None else data_seed
    with ExitStack() as opened:
        with interruptible(is_alone=mesh is None):
            rows = opened.enter_context(training_rows(sources, corpus, config, seed=order, mesh=mesh))
            if warm_start is None:
                first = first_rows(sources, corpus, config)  # before a thread has the models for itself
                generator = weights_generator(config.seed)
                crosscoder = new_crosscoder(rows.sources, config, rows=first, generator=generator)
            else:
                crosscoder = _begun_with(warm_start, sources=rows.sources, config=config)
        trainer = new_trainer(
            crosscoder,
            config,
            total_tokens=tokens_of(rows, corpus, config),
            callbacks=callbacks,
            checkpoint_dir=checkpoint_dir,
            mesh=mesh,
        )
        if resume and checkpoint_dir is not None and has_checkpoint(checkpoint_dir):
            trainer.resume(checkpoint_dir)
        trainer.fit(rows)
    return trainer.whole_crosscoder().eval()


@typed
def weights_generator(seed: int) -> torch.Generator:
    """What draws the first weights of a run: the run's generator, once its buffer took a seed from it.

    Args:
        seed: The run's seed.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.randint(0, 2**62, (), generator=generator)  # the buffer's
    return generator


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
def tokens_of(buffer: SizedBatches, corpus: Corpus, config: RunConfig) -> int | None:
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
    mesh: DeviceMesh | None = None,
) -> Trainer:
    """The trainer of a crosscoder as a run's configuration says.

    Args:
        crosscoder: To be trained in place.
        config: Objective, optimizer and schedule.
        total_tokens: Length of the run; None takes it from the batches.
        callbacks: Observers of the training.
        checkpoint_dir: Where checkpoints go, if the config asks for them.
        mesh: Ranks that train together; None for one process.
    """
    objective: Sequence[LossTerm] = config.objective or default_objective(config.activation_fn)
    training = dataclasses.replace(config.training, total_tokens=total_tokens)
    return Trainer(
        crosscoder,
        objective,
        config=training,
        callbacks=callbacks,
        checkpoint_dir=checkpoint_dir,
        mesh=mesh,
    )


def _begun_with(path: Path | str, *, sources: Sequence[Source], config: RunConfig) -> Crosscoder:
    """The saved crosscoder with this run's scales and activation function."""
    crosscoder = warm_started(path, activation_fn=config.activation_fn, sources=sources)
    if crosscoder.n_latents != config.n_latents:
        raise ValueError(
            f"warm start from {path}: it has {crosscoder.n_latents} latents, the configuration asks for "
            f"{config.n_latents}; set n_latents={crosscoder.n_latents}."
        )
    return crosscoder.to(config.device)
