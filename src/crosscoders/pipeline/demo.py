"""`crosscoders demo`: the main job on the bundled pair, categories, steering, verification, report."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from crosscoders._io import atomic_write_json
from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.harvest import ModelSources
from crosscoders.latents import LatentTable, tabulate_latents
from crosscoders.pipeline.bundled import (
    BUNDLED_NULL,
    DemoData,
    bundled_sources,
    demo_config,
    demo_corpus,
    demo_data,
    held_out_corpus,
)
from crosscoders.pipeline.categories import CategoryLatent, choose_category_latents
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.report import ReportOptions, write_report_on
from crosscoders.pipeline.run import Run, run_on
from crosscoders.pipeline.steering import (
    STEERING_SEED,
    steer_by_latent,
    steering_figure_data,
    steering_lines,
    steering_record,
)
from crosscoders.pipeline.verify import VerifyOptions, verify_on
from crosscoders.provenance import write_manifest
from crosscoders.reasoning.snippets import top_snippets
from crosscoders.report.figures.steering import steering_curves
from crosscoders.zoo.corpus import (
    LabelledTokens,
    category_contrasts,
)

_SNIPPET_ROWS, _N_SNIPPETS = 300, 3
_CATEGORY_HEAD = (
    "",
    "One latent per category, chosen on one half of the held-out text and scored on the other half.",
    "onset: does the act start at the next token? (among full stops inside traces)",
    "function: is this marker word the act, or another use of the same word?",
    "Below each: where the latent fires most among the tokens asked about.",
)


def split_table(
    crosscoder: Crosscoder, sources: ModelSources, labels: LabelledTokens, config: RunConfig
) -> LatentTable:
    """Every latent's scores on one split."""
    corpus = held_out_corpus([labels])
    return tabulate_latents(
        crosscoder, corpus.held_out_batches(sources, config.data), questions=tuple(corpus.answers)
    )


def category_latents(
    run: Run, sources: ModelSources, data: DemoData, config: RunConfig
) -> tuple[list[CategoryLatent], list[str]]:
    """The best latent per category and what to say of each: its score on the other split, where it fires."""
    choose, score = (
        split_table(run.crosscoder, sources, labels, config) for labels in (data.choose, data.score)
    )
    chosen = choose_category_latents(choose, score, data.score)
    lines: list[str] = [*_CATEGORY_HEAD]
    for found in chosen:
        bound = "" if found.bound is None else f" (the generator's own probabilities: {found.bound:.3f})"
        nrn = float(run.latents["nrn_l2"][found.latent])
        lines.append(
            f"\n{found.kind} of {found.category}: latent {found.latent}, AUROC {found.auroc:.3f}{bound}, "
            f"{found.n_yes} yes / {found.n_no} no, NRN {nrn:.2f}"
        )
        lines += [f"  {snippet}" for snippet in _snippets(run.crosscoder, sources, data.score, found)]
    return chosen, lines


def _snippets(
    crosscoder: Crosscoder, sources: ModelSources, labels: LabelledTokens, found: CategoryLatent
) -> list[str]:
    """Where the latent fires most among the tokens that the question was asked about."""
    contrasts = category_contrasts(labels)
    asked = torch.stack([contrasts[name] >= 0 for name in found.questions]).any(dim=0)
    candidates = asked.any(dim=1).nonzero().flatten()
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(STEERING_SEED))
    at = candidates[order[:_SNIPPET_ROWS]]
    rows = labels.tokens[at]
    with torch.no_grad():
        latents = crosscoder.encode(sources.harvest(rows).flatten(0, 1))
    fired = latents if isinstance(latents, Tensor) else latents.to_dense()
    shown = torch.where(asked[at], fired[:, found.latent].reshape(rows.shape), 0.0)
    return [str(snippet) for snippet in top_snippets(shown, rows, sources.tokenizer, n=_N_SNIPPETS)]


@typed
def demo(out: str, *, seed: int = 0, say: Callable[[str], None]) -> Run:
    """Run everything and say what came out.

    Args:
        out: Run folder.
        seed: Seed of the crosscoder, of its data and of sampling.
        say: Gets each piece of text as it is ready.
    """
    config = demo_config(out, seed=seed)
    sources = bundled_sources(config)
    data = demo_data(sources, config)
    run = run_on(sources, demo_corpus(data), config)
    say(run.summary())
    chosen, lines = category_latents(run, sources, data, config)
    assert (chosen[0].kind, chosen[0].category) == ("onset", "self-reflection")
    say("\n".join(lines))
    found = steer_by_latent(run.crosscoder, sources.models["distilled"], chosen[0].latent)
    say("\n".join(steering_lines(found)))
    atomic_write_json(run.out / "categories.json", [dataclasses.asdict(latent) for latent in chosen])
    atomic_write_json(run.out / "steering.json", steering_record(found))
    try:
        figure = run.out / "figures" / "steering.png"
        steering_curves(steering_figure_data(found), list(found.strengths), figure)
    except ImportError as err:
        say(f"No steering figure: {err}")
    _verify(run, config, data, say)
    say("\nThe report:")
    report = write_report_on(
        run.out,
        crosscoder=run.crosscoder,
        latents=run.latents,
        sources=sources,
        corpus=demo_corpus(data),
        options=ReportOptions(steer=(chosen[0].latent,)),
        say=say,
    )
    write_manifest(run.out)
    say(f"\nEverything lies in {run.out}. Look at what changed: open {report / 'index.html'} in a browser.")
    return run


def _verify(run: Run, config: RunConfig, data: DemoData, say: Callable[[str], None]) -> None:
    """The short form of `crosscoders verify`: which of the latents are really one model's."""
    say("\nVerification, short form (crosscoders verify has the whole one, with seeds compared):")
    found = verify_on(
        run.crosscoder,
        bundled_sources(config, null=BUNDLED_NULL),
        demo_corpus(data),
        config,
        out=run.out / "verify",
        options=VerifyOptions.short(seed=config.seed),
    )
    say(found.summary())
