"""`crosscoders store`: fill the activation store of a run, check one, or say what one holds."""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

from crosscoders._typing import typed
from crosscoders.errors import CheckpointError
from crosscoders.pipeline.arguments import add_preempt_argument
from crosscoders.pipeline.config_file import config_of, toml_values
from crosscoders.pipeline.corpus import training_batches
from crosscoders.pipeline.pair import load_pair, pair_corpus
from crosscoders.pipeline.run_store import run_store
from crosscoders.pipeline.sizes import shown_bytes
from crosscoders.store import ActivationStore

_ATTENTION_TOKENS = 256  # on which fast attention is compared with eager attention


@typed
def add_store_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `crosscoders store`.

    Args:
        parser: The command's parser.
    """
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    filler = actions.add_parser("fill", help="harvest what the store of a run lacks, or holds damaged")
    filler.add_argument("config", type=Path, help="TOML file of the run")
    filler.add_argument("--store", help="folder (default: [system] store of the config)")
    add_preempt_argument(filler)
    verifier = actions.add_parser("verify", help="check every byte of a store")
    verifier.add_argument("folder", type=Path, help="folder of the store")
    shower = actions.add_parser("show", help="what a store holds and what it lacks")
    shower.add_argument("folder", type=Path, help="folder of the store")


@typed
def store_command(arguments: argparse.Namespace, *, say: Callable[[str], object] | None = None) -> str:
    """Do what `crosscoders store` asks.

    Args:
        arguments: As `add_store_arguments` declares them.
        say: Takes a line on each shard that is harvested.

    Returns:
        What to print.

    Raises:
        CheckpointError: `verify` found a shard that is missing or damaged; the message lists all.
        ValueError: A configuration without a store, or as for `ActivationStore.create`.
        OSError: Too little space is free, or another process is writing to the store.
    """
    if arguments.action == "fill":
        return _fill(arguments.config, store=arguments.store, say=say)
    store = ActivationStore(arguments.folder)
    if arguments.action == "verify":
        faults = store.verify()
        if faults:
            raise CheckpointError("\n".join([f"{store.folder}: {len(faults)} faults.", *faults]))
        return f"{_size(store)}\nEvery byte is as it was written."
    return _shown(store)


def _fill(path: Path, *, store: str | None, say: Callable[[str], object] | None) -> str:
    config = config_of(toml_values(path), path=path)
    if store is not None:
        config = dataclasses.replace(config, system=dataclasses.replace(config.system, store=store))
    if config.system.store is None:
        raise ValueError(f'{path}: names no store; set [system] store = "FOLDER", or give --store FOLDER.')
    sources = load_pair(config, truncate=True)
    corpus = pair_corpus(config, sources)
    sources.check_attention(corpus.train[:1, :_ATTENTION_TOKENS])
    laid_out = run_store(sources, corpus, config)
    assert laid_out is not None  # the configuration names one
    laid_out.fill(sources, training_batches(corpus, config.data), say=say)
    return _shown(laid_out)


def _size(store: ActivationStore) -> str:
    return (
        f"{store.folder}: {store.n_rows} rows of {store.n_batches} token batches, "
        f"{shown_bytes(store.n_bytes)} in {store.layout.dtype}."
    )


def _shown(store: ActivationStore) -> str:
    layout, missing = store.layout, store.missing_shards
    sources = [
        f"  {source.name}: width {source.d_model}"
        + (f", {source.model_id} at {source.hook_name}" if source.model_id else "")
        + (f", scale {source.scale:.6g}" if store.is_complete else "")
        for source in store.sources
    ]
    expected = store.n_bytes_expected
    still = "" if expected is None else f" (about {shown_bytes(max(0, expected - store.n_bytes))} to come)"
    lacks = (
        f"{len(missing)} shards are missing, the first is {missing[0]}{still}." if missing else "Complete."
    )
    left_out = f"Left out: {len(layout.exclude_token_ids)} ids, {layout.skip_positions} leading positions."
    return "\n".join([_size(store), *sources, left_out, lacks])
