"""The ranks of a run beside the first: they train with it, and leave measuring and writing to it."""

import dataclasses
from pathlib import Path

import torch
from torch.distributed.device_mesh import DeviceMesh

from crosscoders._typing import typed
from crosscoders.harvest import ModelSources
from crosscoders.parallel import leave, ranks_of
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.corpus import Corpus
from crosscoders.pipeline.fit import fit_crosscoder
from crosscoders.pipeline.pair import load_pair, pair_corpus
from crosscoders.row_stream import excluded_ids
from crosscoders.training.preemption import uninterruptible


@typed
def join_run(
    config: RunConfig, *, mesh: DeviceMesh, resume: bool = False, warm_start: Path | str | None = None
) -> None:
    """Take part in the training of a run that the first rank leads with `run`.

    Args:
        config: The same configuration on every rank.
        mesh: Ranks that train together.
        resume: As for the first rank.
        warm_start: As for the first rank.
    """
    sources = load_pair(on_own_device(config, mesh), truncate=True)
    corpus = pair_corpus(config, sources)
    join_run_on(sources, corpus, config, mesh=mesh, resume=resume, warm_start=warm_start)


@typed
def join_run_on(
    sources: ModelSources,
    corpus: Corpus,
    config: RunConfig,
    *,
    mesh: DeviceMesh,
    resume: bool = False,
    warm_start: Path | str | None = None,
) -> None:
    """Take part in the training of a run that the first rank leads with `run_on`; nothing is written.

    Then it leaves `torch.distributed`, as the first rank does.

    Args:
        sources: The same models on every rank.
        corpus: The same tokens on every rank.
        config: The same configuration on every rank.
        mesh: Ranks that train together.
        resume: As for the first rank.
        warm_start: As for the first rank.
    """
    if not ranks_of(mesh).gather_objects(None)[0]:
        never = excluded_ids(sources, corpus.exclude_token_ids)
        with uninterruptible():
            fit_crosscoder(
                sources,
                dataclasses.replace(corpus, exclude_token_ids=never),
                on_own_device(config, mesh),
                checkpoint_dir=Path(config.out) / "checkpoints",
                resume=resume,
                warm_start=warm_start,
                mesh=mesh,
            )
    leave()


@typed
def on_own_device(config: RunConfig, mesh: DeviceMesh | None) -> RunConfig:
    """The configuration with "cuda" named in full where each rank has a CUDA device of its own.

    A thread that harvests in the background would take "cuda" for the first device.

    Args:
        config: What all ranks were given.
        mesh: The ranks; None for one process, whose configuration stays.
    """
    if mesh is None or config.device != "cuda":
        return config
    return dataclasses.replace(config, device=f"cuda:{torch.cuda.current_device()}")
