"""Where the rows of a run come from: harvested, stored, or both, in turns with training or beside it."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from crosscoders._io import is_temporary, temporary_sibling
from crosscoders._typing import typed
from crosscoders.buffer import ActivationBuffer
from crosscoders.harvest import ModelSources, SplitHarvest
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.corpus import Corpus, training_batches
from crosscoders.pipeline.pair import MODULE, load_pair
from crosscoders.pipeline.run_store import run_store
from crosscoders.prefetch import PrefetchedBatches
from crosscoders.row_stream import SupportsHarvest
from crosscoders.store import STORE_NAME, ActivationStore

_TOKENS = "tokens.npy"


@typed
def training_buffer(
    sources: SupportsHarvest,
    corpus: Corpus,
    config: RunConfig,
    *,
    generator: torch.Generator,
    store: ActivationStore | None = None,
) -> ActivationBuffer:
    """The buffer that serves a corpus' activations as a run's configuration says.

    Args:
        sources: The models, each with its hook.
        corpus: Tokens to train on.
        config: Its `data` and the dtype of the rows count.
        generator: Draws the order of the rows.
        store: Holds the rows, or is filled with them.
    """
    return ActivationBuffer(
        sources,
        training_batches(corpus, config.data),
        max_bytes=config.data.buffer_bytes,
        generator=generator,
        batch_tokens=config.data.batch_tokens,
        dtype=config.system.torch_dtype,
        exclude_token_ids=corpus.exclude_token_ids,
        skip_positions=config.data.skip_positions,
        max_norm_multiple=config.data.max_norm_multiple,
        epochs=config.data.epochs,
        store=store,
    )


@contextmanager
@typed
def training_rows(
    sources: ModelSources, corpus: Corpus, config: RunConfig, *, seed: int, mesh: DeviceMesh | None = None
) -> Iterator[ActivationBuffer | PrefetchedBatches]:
    """Open what a run trains on: the same rows in the same order, wherever they come from.

    Args:
        sources: The models, each with its hook.
        corpus: Tokens to train on.
        config: Its `system` says whether rows are kept on disk, and what harvests in the background.
        seed: Draws the order of the rows.
        mesh: Ranks that harvest together; None for one process.

    Yields:
        The batches. What runs in the background ends with the block.

    Raises:
        ValueError: Ranks with an incomplete store or a process each, modules in memory for another process,
            or as for `run_store`.
    """
    if mesh is not None:
        _check_ranks(config)
    store = run_store(sources, corpus, config)
    if config.system.overlap == "process":
        with _in_process(corpus, config, seed=seed) as batches:
            yield batches
        return
    is_beside = config.system.overlap == "thread"
    harvester = sources if mesh is None else SplitHarvest(sources, mesh, in_thread=is_beside)
    make = functools.partial(_seeded_buffer, harvester, corpus, config, seed=seed, store=store)
    if config.system.overlap == "none":
        yield make()
        return
    with PrefetchedBatches(
        make, where="thread", n_batches=config.system.prefetch_batches, device=config.device
    ) as batches:
        yield batches


@contextmanager
def _in_process(corpus: Corpus, config: RunConfig, *, seed: int) -> Iterator[PrefetchedBatches]:
    """Batches from a process with models of its own; the tokens reach it through a file of the run folder."""
    in_memory = [model.path for model in config.models().values() if model.path.startswith(MODULE)]
    if in_memory:
        raise ValueError(
            f"run: system.overlap='process' loads the models again, but {in_memory} live in this process; "
            "use 'thread', or name folders or Hub ids."
        )
    with _token_file(corpus, Path(config.out)) as tokens:
        make = functools.partial(
            _own_buffer, config, tokens=str(tokens), never=corpus.exclude_token_ids, seed=seed
        )
        with PrefetchedBatches(
            make, where="process", n_batches=config.system.prefetch_batches, device=config.device
        ) as batches:
            yield batches


@contextmanager
def _token_file(corpus: Corpus, out: Path) -> Iterator[Path]:
    """The tokens as a file for the length of a block; what a killed run left of that kind goes, too."""
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(f".{_TOKENS}.*"):
        if is_temporary(left.name):
            left.unlink()
    path = temporary_sibling(out / _TOKENS)
    try:
        with path.open("wb") as file:
            np.save(file, corpus.train.numpy())
        yield path
    finally:
        path.unlink(missing_ok=True)


def _seeded_buffer(
    sources: SupportsHarvest, corpus: Corpus, config: RunConfig, *, seed: int, store: ActivationStore | None
) -> ActivationBuffer:
    generator = torch.Generator().manual_seed(seed)
    return training_buffer(sources, corpus, config, generator=generator, store=store)


def _own_buffer(config: RunConfig, *, tokens: str, never: tuple[int, ...], seed: int) -> ActivationBuffer:
    """The buffer of a process that loads the models for itself, up to the hook."""
    sources = load_pair(config, truncate=True)
    train: Int[Tensor, "_ pos"] = torch.from_numpy(np.load(tokens, mmap_mode="c"))  # only what is read
    nothing = train[:0]
    corpus = Corpus(train=train, held_out=nothing, origin=nothing, exclude_token_ids=never)
    return _seeded_buffer(sources, corpus, config, seed=seed, store=run_store(sources, corpus, config))


def _check_ranks(config: RunConfig) -> None:
    """Refuse what several ranks cannot do together, before any of them writes."""
    if config.system.overlap == "process":
        raise ValueError(
            "run: system.overlap='process' is for one process; ranks share the harvest among themselves: use "
            "'thread' or 'none'."
        )
    store = config.system.store
    if store is None:
        return
    lacking = len(ActivationStore(store).missing_shards) if (Path(store) / STORE_NAME).exists() else "all"
    if lacking:
        raise ValueError(
            f"run: the store {store} lacks {lacking} of its shards, and ranks only read one; fill it first "
            "with `crosscoders store fill CONFIG`."
        )
