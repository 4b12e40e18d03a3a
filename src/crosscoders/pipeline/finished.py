"""Opening what a finished run left in its folder: its configuration, crosscoder and models."""

import json
import logging
from pathlib import Path
from typing import Any

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.harvest import ModelSources
from crosscoders.pipeline.bundled import bundled_path, bundled_sources, is_bundled
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.corpus import Corpus
from crosscoders.pipeline.pair import MODULE, load_pair
from crosscoders.provenance import data_fingerprint

log = logging.getLogger(__name__)


@typed
def read_record(folder: Path) -> tuple[dict[str, Any], RunConfig]:
    """The record of a run and the configuration in it.

    Args:
        folder: Folder of the run.

    Raises:
        FileNotFoundError: No run lies there.
        ValueError: The configuration is none of ours.
    """
    file = folder / "run.json"
    if not file.exists():
        raise FileNotFoundError(f"{folder} holds no run.json; pass the folder of a finished run.")
    record = json.loads(file.read_text(encoding="utf-8"))
    return record, RunConfig.from_dict(record["config"])


@typed
def read_crosscoder(folder: Path, config: RunConfig) -> Crosscoder:
    """The crosscoder of a run, on the run's device and in evaluation mode.

    Args:
        folder: Folder of the run.
        config: Says which device.

    Raises:
        CheckpointError: Its files were changed.
    """
    return Crosscoder.from_pretrained(folder / "crosscoder").to(config.device)


@typed
def open_sources(config: RunConfig, *, truncate: bool = False, null: str | None = None) -> ModelSources:
    """The models of a run, each with its hook.

    Args:
        config: Names them.
        truncate: Read them only up to the hook, where no logits are needed.
        null: Folder, Hub id or bundled name of a third model, which becomes the source "null".

    Raises:
        ValueError: The run was made with a module that no folder holds, or no such bundled model.
    """
    if is_bundled(config):
        return bundled_sources(config, null=null)
    for model in config.models().values():
        if model.path.startswith(MODULE):
            raise ValueError(
                f"the run was made with a module in memory ({model.path}); pass "
                "sources=load_sources({'base': ..., 'distilled': ...}, hook_name=...)."
            )
    return load_pair(config, truncate=truncate, null=None if null is None else bundled_path(null))


@typed
def check_same_text(data: dict[str, Any], corpus: Corpus, *, where: Path, may_differ: bool) -> None:
    """Check that held-out text is what a run was measured on.

    Args:
        data: The `data` entry of the run's record.
        corpus: The text as it is now.
        where: Folder of the run, for the message.
        may_differ: Warn instead: ids that a model sampled may differ on another machine; files must not.

    Raises:
        ValueError: The text differs.
    """
    if data["held_out_sha256"] == data_fingerprint(corpus.held_out):
        return
    said = f"the held-out text is not the one that the run in {where} was measured on"
    if not may_differ:
        raise ValueError(f"{said}; was the text file or the tokenizer changed? Run it again.")
    log.warning("%s: sampled answers came out differently on this machine.", said)
