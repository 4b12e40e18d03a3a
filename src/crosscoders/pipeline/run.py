"""The main job: two models and tokens in; a crosscoder, its evaluation and a table of latents out."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from crosscoders._io import atomic_write_json, atomic_write_text
from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.evaluation import ReconstructionScorer, ReconstructionScores, TokenMeans
from crosscoders.harvest import ModelSources
from crosscoders.interventions import SpliceScores, splice_scores
from crosscoders.latents import LatentTable, tabulate_latents
from crosscoders.models.context import context_warning
from crosscoders.parallel import leave, ranks_of
from crosscoders.pipeline.config import ALL_TEXT, RunConfig, default_objective
from crosscoders.pipeline.corpus import Corpus
from crosscoders.pipeline.evaluation_text import evaluation_lines
from crosscoders.pipeline.fit import fit_crosscoder
from crosscoders.pipeline.pair import load_pair, pair_corpus
from crosscoders.pipeline.ranks import on_own_device
from crosscoders.pipeline.resume import (
    TRAINED_AS,
    claim_folder,
    data_record,
    trained_crosscoder,
    training_digest,
    warm_start_origin,
)
from crosscoders.provenance import run_record, write_manifest
from crosscoders.report.figures.norms import cosine_against_nrn, nrn_histogram
from crosscoders.row_stream import excluded_ids
from crosscoders.training import Callback, ProgressBar
from crosscoders.training.loggers import make_loggers
from crosscoders.training.preemption import check_preempted, uninterruptible

log = logging.getLogger(__name__)
_TOKEN_MEAN_ROWS = 512  # rows of training text behind the table of token means
_ATTENTION_TOKENS = 256  # on which fast attention is compared with eager attention


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run found, and the folder that holds it.

    `reconstruction` and `splice` hold one entry per kind of held-out text; `reconstruction["all"]` covers
    every token.

    Args:
        out: The run folder.
        crosscoder: The trained crosscoder, in eval mode.
        latents: One row per latent, measured on held-out text.
        reconstruction: Explained variance and L0 by kind of text, and for all of it as "all".
        splice: For each kind of text and source, KL and cross-entropy with the reconstruction in place.
    """

    out: Path
    crosscoder: Crosscoder
    latents: LatentTable
    reconstruction: dict[str, ReconstructionScores]
    splice: dict[str, dict[str, SpliceScores]]

    def summary(self) -> str:
        """The run in plain text: evaluation per kind of text beside its baseline, then the norm screen."""
        names = [source.name for source in self.crosscoder.sources]
        return "\n".join(
            [*evaluation_lines(names, self.reconstruction, self.splice), "", self.latents.summary()]
        )


@typed
def measure_reconstruction(
    crosscoder: Crosscoder, sources: ModelSources, corpus: Corpus, config: RunConfig
) -> dict[str, ReconstructionScores]:
    """Explained variance and L0 on the held-out tokens, over all of them and apart for each kind of text.

    The baseline is a table of mean activations per token id, made from training text.
    """
    means = TokenMeans(crosscoder.sources)
    for tokens in corpus.train[:_TOKEN_MEAN_ROWS].split(config.data.sequences_per_harvest):
        keep = corpus.kept(tokens, config.data)
        means.update(tokens[keep], sources.harvest(tokens)[keep])
    scorers = {name: ReconstructionScorer(crosscoder, means) for name in (ALL_TEXT, *corpus.origins)}
    for batch in corpus.held_out_batches(sources, config.data):
        scorers[ALL_TEXT].update(batch.rows, batch.token_ids)
        for index in batch.origin.unique().tolist():
            which = batch.origin == index
            scorers[corpus.origins[index]].update(batch.rows[which], batch.token_ids[which])
    return {name: scorer.scores() for name, scorer in scorers.items() if scorer.n_tokens > 1}


@typed
def measure_splice(
    crosscoder: Crosscoder, sources: ModelSources, corpus: Corpus, config: RunConfig
) -> dict[str, dict[str, SpliceScores]]:
    """KL and cross-entropy per model under the spliced reconstruction, apart for each kind of text.

    Empty if the config asks for no tokens.
    """
    if config.data.splice_tokens == 0:
        return {}
    counted = corpus.counted(config.data)
    found = {}
    for index, name in enumerate(corpus.origins):
        chosen = counted & (corpus.origin == index)
        rows = torch.nonzero(chosen.any(dim=1)).flatten()
        enough = int((chosen[rows].sum(dim=1).cumsum(dim=0) < config.data.splice_tokens).sum()) + 1
        if len(rows):
            found[name] = splice_scores(
                crosscoder,
                sources,
                corpus.held_out[rows[:enough]],
                mask=chosen[rows[:enough]],
                batch_size=config.data.sequences_per_harvest,
            )
    return found


@typed
def run_on(
    sources: ModelSources,
    corpus: Corpus,
    config: RunConfig,
    *,
    crosscoder: Crosscoder | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    warm_start: Path | str | None = None,
    mesh: DeviceMesh | None = None,
) -> Run:
    """Train (unless a crosscoder is given), measure, and write the run folder.

    Args:
        sources: The models, each with its hook.
        corpus: Tokens to train and to measure on.
        config: What `run.json` records.
        crosscoder: Measure this one instead of training.
        callbacks: Observers of the training besides the progress bar, the CSV file and the config's loggers.
        resume: Go on with an interrupted run in the same folder: from its newest checkpoint, from the start
            where there is none, and without training where that had ended.
        warm_start: Folder of a saved crosscoder to begin with; `run.json` names it.
        mesh: Ranks that train together: this one is the first, the others call `ranks.join_run_on`. All leave
            `torch.distributed` once nothing is left to train.

    Returns:
        The run; its folder holds `run.json`, `crosscoder/`, `evaluation.json`, `latents.csv`,
        `latents.json`, `summary.txt`,
        figures and `manifest.json`.
    """
    never = excluded_ids(sources, corpus.exclude_token_ids)
    corpus = dataclasses.replace(corpus, exclude_token_ids=never)
    if not config.objective and crosscoder is None:  # so that run.json says what was minimized
        config = dataclasses.replace(config, objective=tuple(default_objective(config.activation_fn)))
    out, ranks = Path(config.out), ranks_of(mesh)
    claim_folder(out)
    data = {
        **data_record(corpus),
        "warm_start": warm_start_origin(warm_start, resumed=out if resume else None),
    }
    (out / "manifest.json").unlink(missing_ok=True)  # what lies here is no finished run from now on
    atomic_write_json(out / "run.json", run_record(config=config.to_dict(), seed=config.seed, data=data))
    digest = None if crosscoder is not None else training_digest(config, data)
    if digest is not None and resume:
        device = on_own_device(config, mesh).device
        crosscoder = trained_crosscoder(out / "crosscoder", digest=digest, device=device)
    ranks.gather_objects(crosscoder is not None)  # tells the other ranks whether there is anything to train
    if crosscoder is None:
        loggers = make_loggers(config.system.loggers, out, config=config.to_dict())
        with uninterruptible():  # but for what `fit_crosscoder` lets be left
            crosscoder = fit_crosscoder(
                sources,
                corpus,
                on_own_device(config, mesh),
                callbacks=[ProgressBar(), *loggers, *callbacks],
                checkpoint_dir=out / "checkpoints",
                resume=resume,
                warm_start=warm_start,
                mesh=mesh,
            )
            crosscoder.save_pretrained(out / "crosscoder", training_summary={TRAINED_AS: digest})
    if mesh is not None:
        leave()  # with the others, as NCCL wants it; this rank goes on alone
    check_preempted()  # whatever happens from here on, it need not be trained again
    crosscoder.eval()
    run = Run(
        out=out,
        crosscoder=crosscoder,
        latents=tabulate_latents(
            crosscoder, corpus.held_out_batches(sources, config.data), questions=tuple(corpus.answers)
        ),
        reconstruction=measure_reconstruction(crosscoder, sources, corpus, config),
        splice=measure_splice(crosscoder, sources, corpus, config),
    )
    _write(run, digest=digest)
    return run


@typed
def run(
    config: RunConfig,
    *,
    base: Any = None,
    distilled: Any = None,
    tokenizer: Any = None,
    resume: bool = False,
    warm_start: Path | str | None = None,
    mesh: DeviceMesh | None = None,
) -> Run:
    """Run a configuration: load both models, tokenize the text, then `run_on`.

    Without splicing (`data.splice_tokens = 0`) each model is read from its files only up to the hook. The
    attention of both is compared with eager attention on a few tokens before anything is trained.

    Args:
        config: The whole configuration.
        base: A module to use in place of the folder or Hub id in the config.
        distilled: Likewise.
        tokenizer: Needed if modules come without one.
        resume: As for `run_on`.
        warm_start: Folder of a saved crosscoder to begin with; `run.json` names it.
        mesh: Ranks that train together: this one is the first, the others call `ranks.join_run`.
    """
    log.info("run: into %s", config.out)
    make_loggers(config.system.loggers, config.out)  # a package that is missing shows before anything loads
    sources = load_pair(
        on_own_device(config, mesh),
        base=base,
        distilled=distilled,
        tokenizer=tokenizer,
        truncate=config.data.splice_tokens == 0,
    )
    context_warning(sources.models, config.data.sequence_length)
    corpus = pair_corpus(config, sources)
    errors = sources.check_attention(corpus.train[:1, :_ATTENTION_TOKENS])
    log.info("attention: relative difference to eager %s", {n: f"{e:.1e}" for n, e in errors.items()})
    return run_on(sources, corpus, config, resume=resume, warm_start=warm_start, mesh=mesh)


def _write(run: Run, *, digest: str | None) -> None:
    summary = {**_training_summary(run), **({} if digest is None else {TRAINED_AS: digest})}
    run.crosscoder.save_pretrained(run.out / "crosscoder", training_summary=summary)
    evaluation = {
        "reconstruction": {name: dataclasses.asdict(scores) for name, scores in run.reconstruction.items()},
        "splice": {
            name: {s: dataclasses.asdict(v) for s, v in scores.items()} for name, scores in run.splice.items()
        },
    }
    atomic_write_json(run.out / "evaluation.json", evaluation)
    run.latents.to_csv(run.out / "latents.csv")
    run.latents.to_json(run.out / "latents.json")
    atomic_write_text(run.out / "summary.txt", run.summary() + "\n")
    _figures(run)
    write_manifest(run.out)


def _training_summary(run: Run) -> dict[str, Any]:
    scores = run.reconstruction[ALL_TEXT]
    return {
        "held_out_tokens": scores.n_tokens,
        "l0": scores.l0,
        "explained_variance": scores.explained_variance,
        "explained_variance_difference": scores.difference,
    }


def _figures(run: Run) -> None:
    (run.out / "figures").mkdir(exist_ok=True)
    if "nrn_l2" not in run.latents.columns:
        return
    try:
        nrn_histogram(run.latents, run.out / "figures" / "nrn.png")
        if "decoder_cosine" in run.latents.columns:
            cosine_against_nrn(run.latents, run.out / "figures" / "cosine_nrn.png")
    except ImportError as err:
        log.warning("No figures: %s", err)
