"""The main job: two models and tokens in; a crosscoder, its evaluation and a table of latents out."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from crosscoders._io import atomic_write_json, atomic_write_text, sha256_file
from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.evaluation import ReconstructionScorer, ReconstructionScores, TokenMeans
from crosscoders.harvest import ModelSources
from crosscoders.interventions import SpliceScores, splice_scores
from crosscoders.latents import LatentTable, tabulate_latents
from crosscoders.models.context import context_warning
from crosscoders.pipeline.config import ALL_TEXT, RunConfig, default_objective
from crosscoders.pipeline.corpus import Corpus
from crosscoders.pipeline.evaluation_text import evaluation_lines
from crosscoders.pipeline.fit import fit_crosscoder
from crosscoders.pipeline.pair import load_pair, pair_corpus
from crosscoders.provenance import data_fingerprint, run_record, write_manifest
from crosscoders.report.figures.norms import cosine_against_nrn, nrn_histogram
from crosscoders.row_stream import excluded_ids
from crosscoders.training import Callback, History, ProgressBar

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
) -> Run:
    """Train (unless a crosscoder is given), measure, and write the run folder.

    Args:
        sources: The models, each with its hook.
        corpus: Tokens to train and to measure on.
        config: What `run.json` records.
        crosscoder: Measure this one instead of training.
        callbacks: Observers of the training besides the progress bar and the CSV history.
        resume: Go on from the newest checkpoint of an interrupted run in the same folder.
        warm_start: Folder of a saved crosscoder to begin with; `run.json` names it.

    Returns:
        The run; its folder holds `run.json`, `crosscoder/`, `evaluation.json`, `latents.csv`,
        `latents.json`, `summary.txt`,
        figures and `manifest.json`.
    """
    never = excluded_ids(sources, corpus.exclude_token_ids)
    corpus = dataclasses.replace(corpus, exclude_token_ids=never)
    if not config.objective and crosscoder is None:  # so that run.json says what was minimized
        config = dataclasses.replace(config, objective=tuple(default_objective(config.activation_fn)))
    out = Path(config.out)
    _claim(out)
    data = {**_data_record(corpus), "warm_start": _origin(warm_start, resumed=out if resume else None)}
    (out / "manifest.json").unlink(missing_ok=True)  # what lies here is no finished run from now on
    atomic_write_json(out / "run.json", run_record(config=config.to_dict(), seed=config.seed, data=data))
    if crosscoder is None:
        observers = [ProgressBar(), History(out / "training.csv"), *callbacks]
        crosscoder = fit_crosscoder(
            sources,
            corpus,
            config,
            callbacks=observers,
            checkpoint_dir=out / "checkpoints",
            resume=resume,
            warm_start=warm_start,
        )
        crosscoder.save_pretrained(out / "crosscoder")  # whatever happens while it is measured
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
    _write(run)
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
) -> Run:
    """Run a configuration: load both models, tokenize the text, then `run_on`.

    Without splicing (`data.splice_tokens = 0`) each model is read from its files only up to the hook. The
    attention of both is compared with eager attention on a few tokens before anything is trained.

    Args:
        config: The whole configuration.
        base: A module to use in place of the folder or Hub id in the config.
        distilled: Likewise.
        tokenizer: Needed if modules come without one.
        resume: Go on from the newest checkpoint of an interrupted run in the same folder.
        warm_start: Folder of a saved crosscoder to begin with; `run.json` names it.
    """
    sources = load_pair(
        config,
        base=base,
        distilled=distilled,
        tokenizer=tokenizer,
        truncate=config.data.splice_tokens == 0,
    )
    context_warning(sources.models, config.data.sequence_length)
    corpus = pair_corpus(config, sources)
    errors = sources.check_attention(corpus.train[:1, :_ATTENTION_TOKENS])
    log.info("attention: relative difference to eager %s", {n: f"{e:.1e}" for n, e in errors.items()})
    return run_on(sources, corpus, config, resume=resume, warm_start=warm_start)


def _claim(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()) and not (out / "run.json").exists():
        raise FileExistsError(f"{out} is neither empty nor the folder of a run; choose another out folder.")
    out.mkdir(parents=True, exist_ok=True)


def _origin(warm_start: Path | str | None, *, resumed: Path | None) -> dict[str, str] | None:
    """What a run began with, a resumed one as its record says; an artifact's config covers its weights."""
    file = None if warm_start is None else Path(warm_start) / "config.json"
    if file is not None and not file.is_file():
        raise FileNotFoundError(f"warm start from {warm_start}: there is no config.json of a crosscoder.")
    given = None if file is None else {"path": str(warm_start), "config_sha256": sha256_file(file)}
    if resumed is None or not (resumed / "run.json").exists():
        return given
    record = json.loads((resumed / "run.json").read_text(encoding="utf-8"))
    known = record["data"].get("warm_start")
    if given is not None and given["config_sha256"] != (known or {}).get("config_sha256"):
        raise ValueError(
            f"warm start from {warm_start}: the run in {resumed} that is to be resumed began with "
            f"{'random weights' if known is None else known['path']}; leave warm_start or resume out."
        )
    return known


def _data_record(corpus: Corpus) -> dict[str, Any]:
    return {
        "train_sha256": data_fingerprint(corpus.train),
        "held_out_sha256": data_fingerprint(corpus.held_out),
        "train_shape": list(corpus.train.shape),
        "held_out_shape": list(corpus.held_out.shape),
        "origins": list(corpus.origins),
        "exclude_token_ids": list(corpus.exclude_token_ids),
    }


def _write(run: Run) -> None:
    run.crosscoder.save_pretrained(run.out / "crosscoder", training_summary=_training_summary(run))
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
