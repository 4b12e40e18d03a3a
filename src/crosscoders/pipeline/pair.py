"""The two models of a configuration, loaded as it says, and its text as they read it."""

import dataclasses
from pathlib import Path
from typing import Any

from crosscoders._typing import typed
from crosscoders.harvest import ModelSources, load_sources
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.corpus import Corpus, corpus_from_text
from crosscoders.pipeline.model_config import check_device_exists

MODULE = "module:"  # start of the label that stands for a module in memory


@typed
def load_pair(
    config: RunConfig,
    *,
    base: Any = None,
    distilled: Any = None,
    tokenizer: Any = None,
    truncate: bool = False,
    null: str | None = None,
) -> ModelSources:
    """Load both models with their dtype, device, revision and offloading, and the policy for token ids.

    Args:
        config: The whole configuration.
        base: A module, or another path, in place of the one in the config; a module keeps its own dtype.
        distilled: Likewise.
        tokenizer: Needed if modules come without one.
        truncate: Read each folder or Hub id only up to the hook.
        null: Folder or Hub id of a third model, loaded as the base is: the base after benign training, with
            which `crosscoders verify` measures what chance finds.

    Returns:
        The sources "base" and "distilled", and "null" if there is one.

    Raises:
        ValueError: A device that this machine lacks, or as for `load_sources`.
        AdapterMismatchError: As for `load_sources`.
    """
    given = {"base": base, "distilled": distilled, "null": None}
    wanted = config.models()
    if null is not None:
        wanted = {**wanted, "null": dataclasses.replace(wanted["base"], path=null, revision=None)}
    models = {name: model.path if given[name] is None else given[name] for name, model in wanted.items()}
    is_path = {name: isinstance(model, str | Path) for name, model in models.items()}
    devices = {name: model.device or config.device for name, model in wanted.items()}
    for name, device in {**devices, "run": config.device}.items():
        check_device_exists(device, where=f"{name}: device")
    return load_sources(
        models,
        hook_name=config.hook_name,
        tokenizer=config.data.tokenizer if tokenizer is None else tokenizer,
        dtype={name: model.torch_dtype if is_path[name] else None for name, model in wanted.items()},
        device=devices,
        revision={name: model.revision if is_path[name] else None for name, model in wanted.items()},
        truncate=truncate,
        offload={name: model.offload for name, model in wanted.items()},
        id_policy=config.data.id_policy,
        onto=config.device,
    )


@typed
def pair_corpus(config: RunConfig, sources: ModelSources) -> Corpus:
    """The text of a configuration as token ids for its models.

    Args:
        config: Says which text, how it is packed and how much is held out.
        sources: The models, with their tokenizer and the policy for its ids.

    Raises:
        ValueError: As for `corpus_from_text`.
        AdapterMismatchError: As for `corpus_from_text`.
    """
    return corpus_from_text(
        config.text,
        sources.tokenizer,
        data=config.data,
        seed=config.seed,
        id_policy=sources.id_policy,
        tokenizers={name: model.tokenizer for name, model in sources.models.items()},
    )
