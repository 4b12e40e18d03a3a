"""`crosscoders report`: a finished run as a folder of pages that opens without a server."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.diffing.verdicts import Verdicts
from crosscoders.harvest import ModelSources
from crosscoders.latents import LatentTable
from crosscoders.pipeline.bundled import held_out_corpus, held_out_splits, is_bundled
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.corpus import Corpus
from crosscoders.pipeline.finished import check_same_text, open_sources, read_crosscoder, read_record
from crosscoders.pipeline.pair import pair_corpus
from crosscoders.pipeline.report.annotations import annotations_of
from crosscoders.pipeline.report.columns import browser_columns
from crosscoders.pipeline.report.evidence import evidence_of
from crosscoders.pipeline.report.experiments import experiments_of
from crosscoders.pipeline.report.nearest import nearest_latents
from crosscoders.pipeline.report.options import ReportOptions
from crosscoders.pipeline.report.overview import overview_of
from crosscoders.pipeline.report.reading import Reading, read_text
from crosscoders.pipeline.report.steering import steering_samples
from crosscoders.pipeline.report.stored_verification import verification_or_note
from crosscoders.provenance import write_manifest
from crosscoders.report.site.pages import N_BINS, LatentPages
from crosscoders.report.site.writer import Site, check_folder, write_site
from crosscoders.sources import check_models_read

_NO_MODELS = (
    "The report was written without the models: there are no snippets, histograms, shares and logit lens."
)


@typed
def write_report(
    run: str | Path,
    *,
    out: str | Path | None = None,
    options: ReportOptions | None = None,
    sources: ModelSources | None = None,
    corpus: Corpus | None = None,
    prompts: Sequence[str] | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Write the report of a finished run.

    With `options.n_tokens = 0` neither models nor text are opened, and what needs them is left out.

    Args:
        run: Folder that `crosscoders run`, `crosscoders demo` or `diff` wrote.
        out: Folder to write to; RUN/report if None. An older report there is replaced.
        options: What it holds.
        sources: The models, where the run was made with modules that no folder holds.
        corpus: The text, where it was passed as token ids; only its held-out part is read.
        prompts: Texts that the samples of `options.steer` go on from; None draws some (`steering_samples`).
        say: Gets a line as each part begins.

    Returns:
        The report's folder; open `index.html` in it.

    Raises:
        FileNotFoundError: No run lies there.
        FileExistsError: `out` holds something that is no report.
        ValueError: The run is not finished, names models or text that cannot be loaded, or its text has
            changed since; or the options name latents that it does not have, or there are prompts and
            none to steer by.
        CheckpointError: The crosscoder's files were changed.
    """
    folder, options = Path(run), options or ReportOptions()
    _check_finished(folder)
    record, config = read_record(folder)
    crosscoder, latents = read_crosscoder(folder, config), LatentTable.from_json(folder / "latents.json")
    target = folder / "report" if out is None else Path(out)
    _check(crosscoder, latents, options, prompts, has_models=options.n_tokens > 0)
    check_folder(target)  # before models are opened
    if options.n_tokens:
        is_own = is_bundled(config)
        sources = open_sources(config) if sources is None else sources
        if corpus is None and is_own:
            corpus = held_out_corpus(held_out_splits(sources, config))
        corpus = pair_corpus(config, sources) if corpus is None else corpus
        check_same_text(record["data"], corpus, where=folder, may_differ=is_own)
    written = write_report_on(
        folder,
        crosscoder=crosscoder,
        latents=latents,
        sources=sources if options.n_tokens else None,
        corpus=corpus if options.n_tokens else None,
        out=target,
        options=options,
        prompts=prompts,
        say=say,
    )
    if target.resolve().is_relative_to(folder.resolve()):
        write_manifest(folder)  # which covered the files of an earlier report
    return written


@typed
def write_report_on(
    folder: Path,
    *,
    crosscoder: Crosscoder,
    latents: LatentTable,
    sources: ModelSources | None,
    corpus: Corpus | None,
    out: Path | None = None,
    options: ReportOptions | None = None,
    prompts: Sequence[str] | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Write the report of a run whose crosscoder, table, models and text are at hand.

    The run's manifest is left as it is.

    Args:
        folder: The run's folder, for everything else that is shown.
        crosscoder: The run's crosscoder.
        latents: Its table.
        sources: Its models; None leaves out what needs them.
        corpus: Its held-out text; None likewise.
        out: Folder to write to; the run's `report` if None.
        options: What it holds.
        prompts: Texts that the samples of `options.steer` go on from; None draws some.
        say: Gets a line as each part begins.

    Returns:
        The report's folder.

    Raises:
        FileNotFoundError: No run lies there.
        FileExistsError: `out` holds something that is no report.
        ValueError: Table, crosscoder and models do not belong together, or the options name latents that the
            crosscoder does not have, or samples for them without models; or there are prompts and no latents
            to steer by.
    """
    options, tell = options or ReportOptions(), say or _say_nothing
    target, config = folder / "report" if out is None else out, read_record(folder)[1]
    check_folder(target)
    has_models = sources is not None and corpus is not None
    _check(crosscoder, latents, options, prompts, has_models=has_models)
    annotations = annotations_of(folder, n_latents=len(latents), extra=options.annotations)
    reading, steering = None, {}
    if sources is not None and corpus is not None and options.n_tokens:
        sources = _those_read(crosscoder, sources)
        reading = read_text(crosscoder, sources, corpus, config, latents=latents, options=options, say=tell)
        steering = _steering(crosscoder, sources, corpus, config, options=options, prompts=prompts, say=tell)
    tell("Gathering the pages ...")
    site = _site(
        folder, crosscoder, latents, reading, options=options, annotations=annotations, steering=steering
    )
    tell(f"Writing {target} ...")
    write_site(target, site)
    return target


def _site(
    folder: Path,
    crosscoder: Crosscoder,
    latents: LatentTable,
    reading: Reading | None,
    *,
    options: ReportOptions,
    annotations: Sequence[str],
    steering: Mapping[int, Sequence[Mapping[str, Any]]],
) -> Site:
    """Everything that is shown, with what lies in the run's folder beside it."""
    record, config = read_record(folder)
    verification, missing = verification_or_note(
        folder / "verify", crosscoder=crosscoder, config=config, latents=latents
    )
    verdicts = None if verification is None else verification.verdicts
    overview = overview_of(
        folder,
        record=record,
        config=config,
        crosscoder=crosscoder,
        latents=latents,
        verification=verification,
        notes=(*((_NO_MODELS,) if reading is None else reading.notes), *missing),
    )
    fires_on = None if reading is None else reading.fires_on
    content, figures = experiments_of(folder)
    return Site(
        overview=overview,
        columns=browser_columns(latents, verdicts=verdicts, fires_on=fires_on, annotations=annotations),
        text=None if reading is None else reading.text,
        pages=_pages(crosscoder, latents, verdicts, reading, options=options, steering=steering),
        experiments=content,
        figures=figures,
        n_tokens=latents.n_tokens,
    )


def _steering(
    crosscoder: Crosscoder,
    sources: ModelSources,
    corpus: Corpus,
    config: RunConfig,
    *,
    options: ReportOptions,
    prompts: Sequence[str] | None,
    say: Callable[[str], None],
) -> dict[int, list[dict[str, Any]]]:
    """Samples of steered text by latent."""
    if not options.steer:
        return {}
    n = len(options.steer)
    say(f"Steering by {n} {'latent' if n == 1 else 'latents'} ...")
    samples = steering_samples(
        crosscoder, sources, latents=options.steer, config=config, corpus=corpus, prompts=prompts
    )
    return {int(latent): group for latent, group in samples.items()}


def _check_finished(folder: Path) -> None:
    read_record(folder)  # says that no run lies there, if so
    missing = [name for name in ("latents.json", "manifest.json") if not (folder / name).exists()]
    if missing:
        raise ValueError(
            f"write_report: the run in {folder} is not finished (no {' and no '.join(missing)}); resume it."
        )


def _say_nothing(text: str) -> None:
    """What is told where nobody listens."""


def _check(
    crosscoder: Crosscoder,
    latents: LatentTable,
    options: ReportOptions,
    prompts: Sequence[str] | None,
    *,
    has_models: bool,
) -> None:
    if latents["latent"].tolist() != list(range(crosscoder.n_latents)):
        raise ValueError(
            f"write_report: expected a table of latents 0 to {crosscoder.n_latents - 1} in order, got "
            f"{len(latents)} rows; do table and crosscoder belong to one run?"
        )
    outside = [latent for latent in options.steer if latent >= crosscoder.n_latents]
    if outside:
        raise ValueError(
            f"write_report: steer names latents {outside}, which are not among 0..{crosscoder.n_latents - 1}."
        )
    if options.steer and not has_models:
        raise ValueError("write_report: steering samples need the models; pass sources= and corpus=.")
    if prompts is not None and not options.steer:
        raise ValueError("write_report: got prompts but no latents to steer by; name some in options.steer.")


def _those_read(crosscoder: Crosscoder, sources: ModelSources) -> ModelSources:
    """The crosscoder's own sources, in its order."""
    names = [source.name for source in crosscoder.sources]
    have = [source.name for source in sources.sources]
    own = sources.only(names) if have != names and set(names) <= set(have) else sources
    check_models_read(crosscoder.sources, own.sources, where="write_report")
    return own


def _pages(
    crosscoder: Crosscoder,
    latents: LatentTable,
    verdicts: Verdicts | None,
    reading: Reading | None,
    *,
    options: ReportOptions,
    steering: Mapping[int, Sequence[Mapping[str, Any]]],
) -> LatentPages:
    nearest, cosine = None, None
    if options.n_nearest and crosscoder.n_latents > 1:
        nearest, cosine = nearest_latents(crosscoder, n=options.n_nearest, max_bytes=options.chunk_bytes)
    lens = None if reading is None else reading.lens
    return LatentPages(
        sources=[source.name for source in crosscoder.sources],
        evidence=evidence_of(latents, verdicts),
        snippets=None if reading is None else reading.snippets,
        histogram=None if reading is None else reading.firings.histogram(n_bins=N_BINS),
        max_activation=None if reading is None else reading.firings.max_activation(),
        lens_top=None if lens is None else lens.top,
        lens_top_value=None if lens is None else lens.top_value,
        lens_bottom=None if lens is None else lens.bottom,
        lens_bottom_value=None if lens is None else lens.bottom_value,
        nearest=nearest,
        nearest_cosine=cosine,
        steering=steering,
    )
