"""`crosscoders demo`: the main job on the bundled pair, then its latents per category, and steering."""

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from crosscoders._io import atomic_write_json
from crosscoders._typing import typed
from crosscoders.activation_fns import BatchTopK
from crosscoders.crosscoder import Crosscoder
from crosscoders.harvest import ModelSources, load_sources
from crosscoders.interventions import AddVector, SteeringHook, random_vector_like
from crosscoders.latents import LatentTable, tabulate_latents
from crosscoders.losses import AuxK, Reconstruction
from crosscoders.pipeline.categories import CategoryLatent, choose_category_latents
from crosscoders.pipeline.config import DataConfig, RunConfig
from crosscoders.pipeline.corpus import Corpus
from crosscoders.pipeline.run import Run, run_on
from crosscoders.pipeline.steering import SteeringSweep, steering_sweep
from crosscoders.provenance import write_manifest
from crosscoders.reasoning.snippets import top_snippets
from crosscoders.report.figures.steering import steering_curves
from crosscoders.training import TrainerConfig
from crosscoders.zoo import model_path
from crosscoders.zoo.arithmetic import sample_problem
from crosscoders.zoo.base_text import prompt
from crosscoders.zoo.corpus import (
    ORIGINS,
    SAMPLE,
    LabelledTokens,
    category_contrasts,
    pack_labelled,
    write_documents,
)
from crosscoders.zoo.measure import answer_problems, held_out_problems
from crosscoders.zoo.parser import parse
from crosscoders.zoo.text import FORMS, LabelledText
from crosscoders.zoo.vocabulary import END_OF_TEXT, encode, token_ids

FAMILY = "tiny-reasoner"
# Later than half depth, where one latent tells onsets of self-reflection better: AUROC on the scoring split
# 0.905, 0.897, 0.945 at the inputs of blocks 3, 4, 5 (one run each; 1.0M, 0.7M, 0.6M tokens; 2026-11).
HOOK_NAME = "blocks.5.hook_resid_pre"
STRENGTHS = (-0.6, -0.3, 0.0, 0.3, 0.6)
TEMPERATURE = 1.0
_TRAIN_SHARES = {"story": 0.2, "drill": 0.15, "solution": 0.2, "trace": 0.45}
_HELD_OUT_TOKENS = 50_000  # of each kind of text
_N_SAMPLES = 700
N_STEERED, STEERING_SEED = 200, 7
_SNIPPET_ROWS, _N_SNIPPETS = 300, 3
_CATEGORY_HEAD = (
    "",
    "One latent per category, chosen on one half of the held-out text and scored on the other half.",
    "onset: does the act start at the next token? (among full stops inside traces)",
    "function: is this marker word the act, or another use of the same word?",
    "Below each: where the latent fires most among the tokens asked about.",
)


@dataclass(frozen=True, kw_only=True)
class DemoData:
    """Training rows and two labeled held-out splits: latents are chosen on `choose`, scored on `score`."""

    train: LabelledTokens
    choose: LabelledTokens
    score: LabelledTokens


def demo_config(out: str, *, seed: int = 0) -> RunConfig:
    """The configuration of the demo's crosscoder."""
    return RunConfig(
        base=f"zoo:{FAMILY}/base",
        distilled=f"zoo:{FAMILY}/distilled",
        text=f"zoo:{FAMILY}",
        out=out,
        n_latents=1024,
        hook_name=HOOK_NAME,
        activation_fn=BatchTopK(k=32, k_initial=200, anneal_fraction=0.5),
        objective=(Reconstruction(), AuxK(weight=1.0, k_aux=64)),
        seed=seed,
        data=DataConfig(n_tokens=1_200_000, batch_tokens=2048),
        training=TrainerConfig(lr=2e-3, log_every_steps=20),
    )


def samples(sources: ModelSources, *, n: int, seed: int, name: str = "distilled") -> list[LabelledText]:
    """A model's own answers to training-side problems at temperature 1, labelled by the grammar's parser."""
    rng = random.Random(f"samples/{seed}")
    problems = [sample_problem(rng) for _ in range(n)]
    answers = answer_problems(
        sources.models[name], problems, temperature=TEMPERATURE, generator=torch.Generator().manual_seed(seed)
    )
    end = token_ids()[END_OF_TEXT]
    texts = [
        [*encode(prompt(p)), *(i for i in ids if i != end)] for p, ids in zip(problems, answers, strict=True)
    ]
    return [parse(ids, origin=SAMPLE) for ids in texts]


def demo_data(sources: ModelSources, config: RunConfig) -> DemoData:
    """Fresh text of every kind; seeds are apart from those that trained the models."""
    seed = 10 * config.seed + 1000
    assert config.data.n_tokens is not None  # `demo_config` says how many
    n_train = config.data.n_tokens
    train = [
        t
        for origin, share in _TRAIN_SHARES.items()
        for t in write_documents(origin, n_tokens=int(share * n_train), seed=seed)
    ]
    random.Random(seed).shuffle(train)
    held_out = [
        [
            t
            for origin in _TRAIN_SHARES
            for t in write_documents(origin, n_tokens=_HELD_OUT_TOKENS // 2, seed=seed + split)
        ]
        + samples(sources, n=_N_SAMPLES // 2, seed=seed + split)
        for split in (1, 2)
    ]
    length = config.data.sequence_length
    return DemoData(
        train=pack_labelled(train, length=length),
        choose=pack_labelled(held_out[0], length=length),
        score=pack_labelled(held_out[1], length=length),
    )


def demo_corpus(data: DemoData) -> Corpus:
    """Both held-out splits together, with the grammar's questions as answers."""
    both = [data.choose, data.score]
    answers = [category_contrasts(labels) for labels in both]
    return Corpus(
        train=data.train.tokens,
        held_out=torch.cat([labels.tokens for labels in both]),
        origin=torch.cat([labels.origin for labels in both]),
        origins=ORIGINS,
        answers={name: torch.cat([answer[name] for answer in answers]) for name in answers[0]},
        exclude_token_ids=(token_ids()[END_OF_TEXT],),
    )


def split_corpus(labels: LabelledTokens) -> Corpus:
    """One labelled split as something to measure on."""
    return Corpus(
        train=labels.tokens[:0],
        held_out=labels.tokens,
        origin=labels.origin,
        origins=ORIGINS,
        answers=category_contrasts(labels),
        exclude_token_ids=(token_ids()[END_OF_TEXT],),
    )


def split_table(
    crosscoder: Crosscoder, sources: ModelSources, labels: LabelledTokens, config: RunConfig
) -> LatentTable:
    """Every latent's scores on one split."""
    corpus = split_corpus(labels)
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


def steering(run: Run, sources: ModelSources, latent: int) -> tuple[SteeringSweep, list[str]]:
    """Steer the distilled model by a latent, a random direction and the marker's unembedding direction."""
    model = sources.models["distilled"]
    stop = (token_ids()["."],)  # where the question was asked that chose the latent
    unit = SteeringHook(run.crosscoder, {latent: 1.0}, source="distilled")
    generator = torch.Generator().manual_seed(STEERING_SEED)
    marker = token_ids()["\u2581" + FORMS["self-reflection"][0]]
    word = model.causal_lm.get_output_embeddings().weight[marker].detach()
    controls = {
        "random direction": random_vector_like(unit.vector, generator=generator),
        "unembedding of 'Wait'": word / word.norm() * unit.vector.norm(),
    }
    hooks: dict[str, Callable[[float], SteeringHook | AddVector]] = {
        f"latent {latent}": lambda strength: SteeringHook(
            run.crosscoder, {latent: strength}, source="distilled", at_tokens=stop
        )
    }
    for name, vector in controls.items():
        hooks[name] = partial(_add, vector, unit.source.hook_name, stop)
    sweep = steering_sweep(
        model,
        held_out_problems(N_STEERED, seed=STEERING_SEED),
        hooks=hooks,
        strengths=STRENGTHS,
        temperature=TEMPERATURE,
        seed=STEERING_SEED,
    )
    return sweep, _steering_lines(sweep)


def _add(vector: Tensor, hook_name: str, at_tokens: tuple[int, ...], strength: float) -> AddVector:
    return AddVector(strength * vector, hook_name=hook_name, at_tokens=at_tokens)


def _steering_lines(sweep: SteeringSweep) -> list[str]:
    rows: list[tuple[str, ...]] = [("direction", "strength", "reflections", "accuracy", "tokens", "finished")]
    for name, row in sweep.behaviours.items():
        for strength, b in zip(sweep.strengths, row, strict=True):
            figures = (strength, b.reflections_per_answer, b.accuracy, b.tokens_per_answer, b.finished)
            rows.append((name, *(f"{figure:.2f}" for figure in figures)))
    return [
        "",
        f"Steering the distilled model on {N_STEERED} held-out problems (temperature {TEMPERATURE});",
        "at full stops; strength in units of the mean residual norm, figures per answer:",
        *(f"{name:24}" + "".join(f"{cell:>13}" for cell in cells) for name, *cells in rows),
    ]


def _steering_record(sweep: SteeringSweep) -> dict[str, list[dict[str, float]]]:
    return {
        name: [
            {"strength": strength, **b.to_dict()} for strength, b in zip(sweep.strengths, row, strict=True)
        ]
        for name, row in sweep.behaviours.items()
    }


@typed
def demo(out: str, *, seed: int = 0, say: Callable[[str], None]) -> Run:
    """Run everything and say what came out.

    Args:
        out: Run folder.
        seed: Seed of the crosscoder, of its data and of sampling.
        say: Gets each piece of text as it is ready.
    """
    config = demo_config(out, seed=seed)
    models = {name: str(model_path(FAMILY, name)) for name in ("base", "distilled")}
    sources = load_sources(models, hook_name=config.hook_name)
    data = demo_data(sources, config)
    run = run_on(sources, demo_corpus(data), config)
    say(run.summary())
    chosen, lines = category_latents(run, sources, data, config)
    assert (chosen[0].kind, chosen[0].category) == ("onset", "self-reflection")
    say("\n".join(lines))
    sweep, lines = steering(run, sources, chosen[0].latent)
    say("\n".join(lines))
    atomic_write_json(run.out / "categories.json", [dataclasses.asdict(found) for found in chosen])
    atomic_write_json(run.out / "steering.json", _steering_record(sweep))
    try:
        figure = run.out / "figures" / "steering.png"
        measures = {
            "reflections per answer": "reflections_per_answer",
            "accuracy": "accuracy",
            "tokens per answer": "tokens_per_answer",
        }
        steering_curves(
            {title: sweep.values(name) for title, name in measures.items()}, list(sweep.strengths), figure
        )
    except ImportError as err:
        say(f"No steering figure: {err}")
    write_manifest(run.out)
    say(f"\nEverything lies in {run.out}; figures/ holds the pictures, latents.csv the table.")
    return run
