"""The crosscoders that a verification trains: all of them on one harvest of all models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from crosscoders.crosscoder import Crosscoder
from crosscoders.diffing.planted.spike_in import Spikes
from crosscoders.harvest import ModelSources
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.corpus import Corpus
from crosscoders.pipeline.fit import first_rows, new_crosscoder, new_trainer, tokens_of
from crosscoders.pipeline.rows import training_buffer
from crosscoders.sources import Source, column_slices
from crosscoders.training.many import fit_many

_SEED_STEP = 1000  # apart from the run's own seeds, which count up from what the user gives


@final
@dataclass(frozen=True, kw_only=True)
class Job:
    """One crosscoder to train.

    Args:
        name: What it is for, such as "null".
        reads: Name of the harvested source behind each of its own two sources; one name twice is a model
            against itself.
        number: Tells apart the seeds of jobs that read the same.
        spikes: Plants to put into its rows.
    """

    name: str
    reads: tuple[str, str]
    number: int
    spikes: Spikes | None = None

    def sources(self, harvested: Sequence[Source]) -> tuple[Source, ...]:
        """Its sources, with the scales of those harvested; a repeated one gets a second name."""
        by_name = {source.name: source for source in harvested}
        first, second = (by_name[name] for name in self.reads)
        if first.name == second.name:
            second = replace(second, name=f"{second.name} again")
        return first, second

    def rows(self, rows: Tensor, harvested: Sequence[Source], *, position: int) -> Tensor:
        """Its own columns of harvested rows, planted into if there are plants."""
        columns = column_slices(harvested)
        own = torch.cat([rows[:, columns[name]] for name in self.reads], dim=1)
        return own if self.spikes is None else self.spikes.plant(own, position)


def fit_jobs(
    jobs: Sequence[Job], sources: ModelSources, corpus: Corpus, config: RunConfig, *, seed: int
) -> list[Crosscoder]:
    """Train the crosscoders of all jobs on one pass over the corpus.

    Args:
        jobs: What to train.
        sources: All models, each with its hook; they are read once.
        corpus: Tokens to train on.
        config: Dictionary, objective, optimizer and buffer of each.
        seed: Seed of the verification.

    Returns:
        One crosscoder per job, in evaluation mode.
    """
    generator = torch.Generator().manual_seed(config.seed + _SEED_STEP * (seed + 1))
    # They live in memory only, whatever checkpoints the run itself wrote.
    config = replace(config, training=replace(config.training, checkpoint_every_steps=0))
    buffer = training_buffer(sources, corpus, config, generator=generator)
    rows, total = first_rows(sources, corpus, config), tokens_of(buffer, corpus, config)
    trainers = []
    for at, job in enumerate(jobs):
        own = torch.Generator().manual_seed(config.seed + _SEED_STEP * (seed + 1) + 1 + at)
        crosscoder = new_crosscoder(
            job.sources(buffer.sources),
            config,
            rows=job.rows(rows, buffer.sources, position=0),
            generator=own,
        )
        trainers.append(new_trainer(crosscoder, config, total_tokens=total))
    fit_many(trainers, buffer, transforms=[_transform(job, buffer.sources) for job in jobs])
    return [trainer.crosscoder.eval() for trainer in trainers]


def _transform(job: Job, harvested: Sequence[Source]) -> Callable[[Tensor, int], Tensor]:
    return lambda rows, position: job.rows(rows, harvested, position=position)
