"""`crosscoders verify`: which hits of a run survive, what chance leaves, and what could have been found."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.diffing.measures.alignment import Alignment, alignment
from crosscoders.diffing.measures.swap import swap_readout
from crosscoders.diffing.planted.spike_in import SpikeIn, Spikes
from crosscoders.diffing.verdicts import NullReference, Power, Verdicts, null_reference
from crosscoders.harvest import ModelSources
from crosscoders.pipeline.bundled import BUNDLED_NULL, demo_corpus, demo_data, is_bundled
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.corpus import Corpus
from crosscoders.pipeline.finished import check_same_text, open_sources, read_crosscoder, read_record
from crosscoders.pipeline.pair import MODULE, pair_corpus
from crosscoders.pipeline.verify.baselines import baseline_lines
from crosscoders.pipeline.verify.causal import check_groups
from crosscoders.pipeline.verify.jobs import Job, fit_jobs
from crosscoders.pipeline.verify.judging import Judged, judge_group, known_rows, power_of
from crosscoders.pipeline.verify.options import VerifyOptions
from crosscoders.pipeline.verify.result import NULL, REAL, SELF, SPIKED, Verification, write_verification
from crosscoders.pipeline.verify.rows import HeldOutRows
from crosscoders.provenance import run_record, weights_fingerprint, write_manifest
from crosscoders.row_stream import excluded_ids

NULL_SOURCE = "null"


@typed
def verify_on(
    crosscoder: Crosscoder,
    sources: ModelSources,
    corpus: Corpus,
    config: RunConfig,
    *,
    out: Path,
    options: VerifyOptions | None = None,
    say: Callable[[str], None] | None = None,
) -> Verification:
    """Verify a crosscoder of two models, with a third as the null if the sources hold one.

    All further crosscoders are trained on one harvest of all models: seeds of the pair, the base against the
    null, the base against itself with directions of its own in each source, and the pair with features
    planted into its activations.

    Args:
        crosscoder: The crosscoder of the sources "base" and "distilled", trained.
        sources: These two models, whole where there is to be a causal check, and "null" if there is one.
        corpus: Text to train the others on, and held-out text to measure all of them on.
        config: How the crosscoder was trained.
        out: Folder to write to.
        options: How much is done.
        say: Gets a line as each part begins.

    Returns:
        The verification.

    Raises:
        ValueError: A crosscoder of more or fewer than two sources, other sources than the crosscoder's, or
            text too short to measure on.
    """
    options, tell = options or VerifyOptions(), say or _say_nothing
    _check_sources(crosscoder, sources)
    never = excluded_ids(sources, corpus.exclude_token_ids)  # as in the run itself
    corpus = dataclasses.replace(corpus, exclude_token_ids=never)
    record = _record(crosscoder, config, options, sources)
    names = (crosscoder.sources[0].name, crosscoder.sources[1].name)
    generator = torch.Generator().manual_seed(options.seed)
    tell("Reading the held-out text ...")
    rows = HeldOutRows(sources, corpus, config.data)
    own = Job(name=REAL, reads=names, number=0)
    aligned = alignment(rows.of(own), crosscoder.sources, generator=generator)
    if not aligned.is_aligned:
        return _not_aligned(names, aligned, options, out=out, record=record)
    first = judge_group([crosscoder], [own], rows, options, is_compared=False)[0]
    jobs = _jobs(names, crosscoder, first, sources, options, generator)
    tell(f"Training {len(jobs)} further crosscoders on one harvest ...")
    fitted = fit_jobs(jobs, sources, corpus, config, seed=options.seed) if jobs else []
    tell("Measuring and judging all of them ...")
    groups = _judge(crosscoder, own, jobs, fitted, rows, options)
    verdicts = _verdicts(names, aligned, groups, _power(groups, jobs[-1:], rows), options)
    tell("Checking what the latents do ...")
    causal = check_groups(crosscoder, sources, corpus, config, verdicts, options=options)
    found = Verification(
        verdicts=verdicts,
        others={**groups, REAL: groups[REAL][1:], SPIKED: groups.get(SPIKED, ())},
        causal=causal,
        baselines=tuple(baseline_lines(own, rows, sources, corpus, config, n_tokens=options.causal_tokens)),
        out=out,
        swap=tuple(_swap_lines(crosscoder, own, rows)),
    )
    write_verification(found, record=record)
    return found


@typed
def verify(
    run: str | Path,
    *,
    null: str | None = None,
    out: str | Path | None = None,
    options: VerifyOptions | None = None,
    sources: ModelSources | None = None,
    corpus: Corpus | None = None,
    say: Callable[[str], None] | None = None,
) -> Verification:
    """Verify a finished run: which of its latents are really specific to one model.

    Args:
        run: Folder that `crosscoders run`, `crosscoders demo` or `diff` wrote.
        null: A third model that differs from the base in nothing that matters, such as the base trained on
            with the same schedule on more of its own text: folder, Hub id or bundled name, or the folder of
            a run of the base against it. The bundled pair brings its own; without one only the self-diff is
            a null.
        out: Folder to write to; RUN/verify if None.
        options: How much is done.
        sources: The models, where the run was made with modules that no folder holds; a source named "null"
            is the null.
        corpus: The text, where it was passed as token ids.
        say: Gets a line as each part begins.

    Returns:
        The verification; `summary()` says what survives, `verdicts.explain(latent)` why.

    Raises:
        FileNotFoundError: No run lies there.
        ValueError: The run names models or text that cannot be loaded, or its text has changed since; or
            both `sources` and `null` are given.
        CheckpointError: The crosscoder's files were changed.
    """
    if sources is not None and null is not None:
        raise ValueError(
            f'verify: got both sources= and null={null!r}; load the null beside the others as "null".'
        )
    folder, options = Path(run), options or VerifyOptions()
    record, config = read_record(folder)
    crosscoder = read_crosscoder(folder, config)
    is_own = is_bundled(config)
    if sources is None:
        third = BUNDLED_NULL if null is None and is_own else _null_model(null)
        third = None if options.n_null_seeds == 0 else third
        sources = open_sources(config, truncate=options.causal_tokens == 0, null=third)
    if corpus is None:
        corpus = demo_corpus(demo_data(sources, config)) if is_own else pair_corpus(config, sources)
    check_same_text(record["data"], corpus, where=folder, may_differ=is_own)
    target = folder / "verify" if out is None else Path(out)
    found = verify_on(crosscoder, sources, corpus, config, out=target, options=options, say=say)
    if out is None and (folder / "manifest.json").exists():
        write_manifest(folder)  # which covered the files of an earlier verification
    return found


def _say_nothing(text: str) -> None:
    """What is told where nobody listens."""


def _check_sources(crosscoder: Crosscoder, sources: ModelSources) -> None:
    wanted, got = (
        [(source.name, source.d_model, source.hook_name) for source in group]
        for group in (crosscoder.sources, sources.sources)
    )
    if len(wanted) != 2:
        raise ValueError(f"verify: compares two sources, but the crosscoder has {len(wanted)}: {wanted}.")
    if not set(wanted) <= set(got):
        raise ValueError(
            f"verify: the crosscoder reads {wanted} (name, d_model, hook_name), but the models are {got}; "
            "load them with the hooks that the crosscoder was trained on."
        )


def _null_model(null: str | None) -> str | None:
    """The model that `null` names; of a run's folder its second one."""
    if null is None or not (Path(null) / "run.json").exists():
        return null
    path = read_record(Path(null))[1].models()["distilled"].path
    if path.startswith(MODULE):
        raise ValueError(
            f"verify: the null run in {null} was made with a module in memory ({path}); pass the null "
            "model's folder, or sources= with a source named null."
        )
    return path


def _jobs(
    names: tuple[str, str],
    crosscoder: Crosscoder,
    first: Judged,
    sources: ModelSources,
    options: VerifyOptions,
    generator: torch.Generator,
) -> list[Job]:
    """Seeds of the pair, then the nulls, then the planted one."""
    base = names[0]
    jobs = [Job(name=REAL, reads=names, number=n) for n in range(1, options.n_seeds)]
    if NULL_SOURCE in sources.models:
        jobs += [Job(name=NULL, reads=(base, NULL_SOURCE), number=n) for n in range(options.n_null_seeds)]
    if options.self_diff:
        jobs += [Job(name=SELF, reads=(base, base), number=n) for n in range(options.n_null_seeds)]
    if options.spike_in is not None:
        spikes = _spikes(options.spike_in, crosscoder, first, generator)
        jobs.append(Job(name=SPIKED, reads=names, number=0, spikes=spikes))
    return jobs


def _spikes(spike_in: SpikeIn, crosscoder: Crosscoder, first: Judged, generator: torch.Generator) -> Spikes:
    """Plants; only in random directions if too few latents are known to both models."""
    known = known_rows(crosscoder, first)
    if len(known) < spike_in.n_decoder_rows:
        spike_in = dataclasses.replace(spike_in, directions="random")
    return spike_in.draw(
        crosscoder.sources,
        generator=generator,
        typical_strength=first.typical_strength,
        decoder_rows=known,
    )


def _judge(
    crosscoder: Crosscoder,
    own: Job,
    jobs: list[Job],
    fitted: list[Crosscoder],
    rows: HeldOutRows,
    options: VerifyOptions,
) -> dict[str, tuple[Judged, ...]]:
    """Verdicts on all crosscoders, seeds of one kind compared with each other."""
    everything = [(own, crosscoder), *zip(jobs, fitted, strict=True)]
    groups: dict[str, tuple[Judged, ...]] = {}
    for name in dict.fromkeys(job.name for job, _ in everything):
        group = [(job, found) for job, found in everything if job.name == name]
        of_jobs, of_crosscoders = zip(*group, strict=True)
        # A null is not spared by a test that the pair itself does not have to pass.
        is_compared = options.n_seeds > 1
        groups[name] = judge_group(of_crosscoders, of_jobs, rows, options, is_compared=is_compared)
    return groups


def _swap_lines(crosscoder: Crosscoder, own: Job, rows: HeldOutRows) -> list[str]:
    """Explained variance as usual and under swap, which say how far the readout's columns can be trusted."""
    widths = {source.d_model for source in crosscoder.sources}
    return swap_readout(crosscoder, rows.of(own)).lines() if len(widths) == 1 else []


def _verdicts(
    names: tuple[str, str],
    aligned: Alignment,
    groups: dict[str, tuple[Judged, ...]],
    power: Power | None,
    options: VerifyOptions,
) -> Verdicts:
    """Verdicts on the run's own crosscoder, with every null beside them."""
    main = groups[REAL][0]
    return Verdicts(
        pair=names,
        evidence=main.evidence,
        judgements=main.judgements,
        thresholds=options.thresholds,
        alignment=aligned,
        nulls=tuple(_null(name, group) for name, group in groups.items() if name not in (REAL, SPIKED)),
        power=power,
    )


def _power(groups: dict[str, tuple[Judged, ...]], planted: Sequence[Job], rows: HeldOutRows) -> Power | None:
    """What became of the plants of the last job, if there were any."""
    if SPIKED not in groups:
        return None
    return power_of(groups[SPIKED][0], planted[0], rows, typical=groups[REAL][0].typical_strength)


def _null(name: str, group: tuple[Judged, ...]) -> NullReference:
    return null_reference(name, [one.frequency for one in group], [one.is_specific for one in group])


def _not_aligned(
    names: tuple[str, str], aligned: Alignment, options: VerifyOptions, *, out: Path, record: dict[str, Any]
) -> Verification:
    """Nothing is measured on rows that do not belong together."""
    verdicts = Verdicts(
        pair=names, evidence=None, judgements=(), thresholds=options.thresholds, alignment=aligned
    )
    found = Verification(verdicts=verdicts, others={}, causal={}, baselines=(), out=out)
    write_verification(found, record=record)
    return found


def _record(
    crosscoder: Crosscoder, config: RunConfig, options: VerifyOptions, sources: ModelSources
) -> dict[str, Any]:
    """What was done, on which crosscoder and models, with which versions."""
    models = {source.name: dataclasses.asdict(source) for source in sources.sources}
    done = {"run": config.to_dict(), "verify": dataclasses.asdict(options)}
    data = {"sources": models, "weights_sha256": weights_fingerprint(crosscoder.state_dict())}
    return run_record(config=done, seed=options.seed, data=data)
