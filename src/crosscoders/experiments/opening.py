"""Opening a finished run for experiments: models, crosscoder, text and table, checked to belong together."""

from pathlib import Path

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.experiments.bundled_material import bundled_material
from crosscoders.experiments.study import Study
from crosscoders.experiments.text_material import MaterialConfig, text_material
from crosscoders.harvest import ModelSources
from crosscoders.latents import LatentTable
from crosscoders.pipeline.bundled import held_out_corpus, held_out_splits, is_bundled
from crosscoders.pipeline.corpus import Corpus
from crosscoders.pipeline.finished import check_same_text, open_sources, read_crosscoder, read_record
from crosscoders.pipeline.pair import pair_corpus


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
    record, config = read_record(folder)
    if not (folder / "latents.json").exists():
        raise ValueError(f"open_study: the run in {folder} is not finished (no latents.json); resume it.")
    crosscoder = read_crosscoder(folder, config)
    is_own = is_bundled(config)
    sources = open_sources(config) if sources is None else sources
    if is_own and corpus is None:
        splits = held_out_splits(sources, config)
        corpus, found = held_out_corpus(splits), bundled_material(splits)
    else:
        corpus = pair_corpus(config, sources) if corpus is None else corpus
        found = text_material(material or MaterialConfig(), sources=sources, corpus=corpus)
    check_same_text(record["data"], corpus, where=folder, may_differ=is_own)
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
    _, config = read_record(Path(run))
    return read_crosscoder(Path(run), config), open_sources(config, truncate=truncate)
