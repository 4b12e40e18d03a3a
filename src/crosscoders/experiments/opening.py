"""Opening a finished run for experiments: models, crosscoder, text and table, checked to belong together."""

import json
import logging
from pathlib import Path
from typing import Any

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.experiments.bundled_material import bundled_material
from crosscoders.experiments.study import Study
from crosscoders.experiments.text_material import MaterialConfig, text_material
from crosscoders.harvest import ModelSources
from crosscoders.latents import LatentTable
from crosscoders.pipeline.bundled import bundled_sources, held_out_corpus, held_out_splits, is_bundled
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.corpus import Corpus
from crosscoders.pipeline.pair import MODULE, load_pair, pair_corpus
from crosscoders.provenance import data_fingerprint

log = logging.getLogger(__name__)


@typed
def open_study(
    run: str | Path,
    *,
    material: MaterialConfig | None = None,
    sources: ModelSources | None = None,
    corpus: Corpus | None = None,
) -> Study:
    """Load what a run folder names.

    Args:
        run: Folder that `crosscoders run`, `crosscoders demo` or `diff` wrote.
        material: Prompts, grader, lexicon and word pairs of the pair; the bundled pair brings its own.
        sources: The models, where the run was made with modules that no folder holds.
        corpus: The text, where it was passed as token ids; only its held-out part is read.

    Returns:
        The study. The held-out text is the one that the run measured on.

    Raises:
        FileNotFoundError: No run lies there.
        ValueError: The run names models or text that cannot be loaded, or its text has changed since.
        CheckpointError: The crosscoder's files were changed.
    """
    folder = Path(run)
    record, config = _record(folder)
    if not (folder / "latents.json").exists():
        raise ValueError(f"open_study: the run in {folder} is not finished (no latents.json); resume it.")
    crosscoder = _crosscoder(folder, config)
    is_own = is_bundled(config)
    sources = _sources(config) if sources is None else sources
    if is_own and corpus is None:
        splits = held_out_splits(sources, config)
        corpus, found = held_out_corpus(splits), bundled_material(splits)
    else:
        corpus = pair_corpus(config, sources) if corpus is None else corpus
        found = text_material(material or MaterialConfig(), sources=sources, corpus=corpus)
    _check_text(record["data"], corpus, where=folder, may_differ=is_own)
    return Study(
        config=config,
        crosscoder=crosscoder,
        sources=sources,
        corpus=corpus,
        latents=LatentTable.from_json(folder / "latents.json"),
        material=found,
    )


@typed
def open_models(run: str | Path, *, truncate: bool = False) -> tuple[Crosscoder, ModelSources]:
    """The crosscoder and the models of a run folder, without its text.

    Args:
        run: Folder that `crosscoders run`, `crosscoders demo` or `diff` wrote.
        truncate: Read the models only up to the hook, where no logits are needed.

    Returns:
        The crosscoder in evaluation mode, and the models.

    Raises:
        FileNotFoundError: No run lies there.
        ValueError: The run names models that cannot be loaded.
        CheckpointError: The crosscoder's files were changed.
    """
    _, config = _record(Path(run))
    return _crosscoder(Path(run), config), _sources(config, truncate=truncate)


def _record(folder: Path) -> tuple[dict[str, Any], RunConfig]:
    file = folder / "run.json"
    if not file.exists():
        raise FileNotFoundError(f"{folder} holds no run.json; pass the folder of a finished run.")
    record = json.loads(file.read_text(encoding="utf-8"))
    return record, RunConfig.from_dict(record["config"])


def _crosscoder(folder: Path, config: RunConfig) -> Crosscoder:
    return Crosscoder.from_pretrained(folder / "crosscoder").to(config.device)


def _sources(config: RunConfig, *, truncate: bool = False) -> ModelSources:
    if is_bundled(config):
        return bundled_sources(config)
    for model in config.models().values():
        if model.path.startswith(MODULE):
            raise ValueError(
                f"open_study: the run was made with a module in memory ({model.path}); pass "
                "sources=load_sources({'base': ..., 'distilled': ...}, hook_name=...)."
            )
    return load_pair(config, truncate=truncate)


def _check_text(data: dict[str, Any], corpus: Corpus, *, where: Path, may_differ: bool) -> None:
    """Token ids that a model sampled may differ on another machine; files must not."""
    if data["held_out_sha256"] == data_fingerprint(corpus.held_out):
        return
    said = f"open_study: the held-out text is not the one that the run in {where} was measured on"
    if not may_differ:
        raise ValueError(f"{said}; was the text file or the tokenizer changed? Run it again.")
    log.warning("%s: sampled answers came out differently on this machine.", said)
