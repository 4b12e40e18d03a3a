"""The activation store of a run: `[system] store` of its configuration."""

from pathlib import Path

from crosscoders._typing import typed
from crosscoders.harvest import ModelSources
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.corpus import Corpus, training_batches
from crosscoders.store import ActivationStore

_ABOUT = ("base", "distilled", "text", "hook_name", "seed", "data")  # what of a run's config makes its rows


@typed
def run_store(sources: ModelSources, corpus: Corpus, config: RunConfig) -> ActivationStore | None:
    """Lay out the store that a run reads and fills, or open it.

    Args:
        sources: The models, each with its hook.
        corpus: Tokens to train on.
        config: Its `system` names the folder, the dtype of the rows and the size of a shard.

    Returns:
        The store; None if the configuration has none.

    Raises:
        ValueError: The folder holds the rows of another harvest.
        CheckpointError: Its `store.json` is damaged.
    """
    if config.system.store is None:
        return None
    plain = config.to_dict()
    return ActivationStore.create(
        Path(config.system.store),
        sources,
        training_batches(corpus, config.data),
        dtype=config.system.torch_dtype,
        shard_bytes=config.system.shard_bytes,
        exclude_token_ids=corpus.exclude_token_ids,
        skip_positions=config.data.skip_positions,
        about={key: plain[key] for key in _ABOUT},
    )
