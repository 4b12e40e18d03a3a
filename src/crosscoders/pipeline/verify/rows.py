"""Held-out rows that several crosscoders are measured on: harvested once, kept in memory."""

from collections.abc import Iterator, Sequence
from typing import final

from torch import Tensor

from crosscoders.diffing.batches import MeasureBatch
from crosscoders.harvest import ModelSources
from crosscoders.pipeline.config import DataConfig
from crosscoders.pipeline.corpus import Corpus
from crosscoders.pipeline.verify.jobs import Job
from crosscoders.sources import Source

_AFTER_TRAINING = 2**40  # position of the first held-out row: no training run gets this far


@final
class HeldOutRows:
    """The held-out activations of all models, and each job's own view of them.

    Args:
        sources: All models, each with its hook.
        corpus: Its held-out text is read, once.
        data: Says which positions count.
    """

    def __init__(self, sources: ModelSources, corpus: Corpus, data: DataConfig) -> None:
        self.sources: Sequence[Source] = sources.sources
        self._batches = []
        for batch in corpus.held_out_batches(sources, data):
            assert batch.sequence is not None  # a corpus numbers its rows
            self._batches.append(MeasureBatch(rows=batch.rows.cpu(), sequence=batch.sequence))

    @property
    def n_rows(self) -> int:
        """Rows in all."""
        return sum(len(batch.rows) for batch in self._batches)

    def of(self, job: Job) -> Iterator[MeasureBatch]:
        """The rows as a job's crosscoder reads them, its plants included."""
        position = _AFTER_TRAINING
        for batch in self._batches:
            yield MeasureBatch(
                rows=job.rows(batch.rows, self.sources, position=position), sequence=batch.sequence
            )
            position += len(batch.rows)

    def planted(self, job: Job) -> Iterator[Tensor]:
        """Activation of each of a job's plants on the same rows, batch by batch."""
        assert job.spikes is not None
        position = _AFTER_TRAINING
        for batch in self._batches:
            yield job.spikes.activations(len(batch.rows), position)
            position += len(batch.rows)
