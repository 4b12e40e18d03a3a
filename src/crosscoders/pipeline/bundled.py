"""The bundled pair's text and configuration: what the demo and the experiments train and measure on."""

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from crosscoders._typing import typed
from crosscoders.activation_fns import BatchTopK
from crosscoders.harvest import ModelSources
from crosscoders.losses import AuxK, Reconstruction
from crosscoders.pipeline.config import DataConfig, RunConfig
from crosscoders.pipeline.corpus import Corpus
from crosscoders.pipeline.pair import load_pair
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
from crosscoders.zoo.measure import answer_problems
from crosscoders.zoo.parser import parse
from crosscoders.zoo.text import LabelledText
from crosscoders.zoo.vocabulary import END_OF_TEXT, encode, token_ids

FAMILY = "tiny-reasoner"
ZOO = "zoo:"
BUNDLED_NULL = f"{ZOO}{FAMILY}/null"
# Later than half depth, where one latent tells onsets of self-reflection better: AUROC on the scoring split
# 0.905, 0.897, 0.945 at the inputs of blocks 3, 4, 5 (one run each; 1.0M, 0.7M, 0.6M tokens; 2026-11).
HOOK_NAME = "blocks.5.hook_resid_pre"
TEMPERATURE = 1.0
_TRAIN_SHARES = {"story": 0.2, "drill": 0.15, "solution": 0.2, "trace": 0.45}
_HELD_OUT_TOKENS = 50_000  # of each kind of text
_N_SAMPLES = 700


@dataclass(frozen=True, kw_only=True)
class DemoData:
    """Training rows and two labeled held-out splits: latents are chosen on `choose`, scored on `score`."""

    train: LabelledTokens
    choose: LabelledTokens
    score: LabelledTokens


@typed
def is_bundled(config: RunConfig) -> bool:
    """Whether a configuration names the bundled pair, `zoo:FAMILY/MEMBER`, whose text the grammar writes.

    Args:
        config: Any configuration.

    Raises:
        ValueError: It does, but names other text, or does not say how many tokens to write.
    """
    base = config.models()["base"].path
    if not base.startswith(ZOO):
        return False
    if config.text != f"{ZOO}{FAMILY}" or config.data.n_tokens is None:
        raise ValueError(
            f"models {base!r} come with their own text: expected text = '{ZOO}{FAMILY}' and "
            f"data.n_tokens, got {config.text!r} and {config.data.n_tokens}; for other text name their "
            "folders (crosscoders.zoo.model_path)."
        )
    return True


@typed
def bundled_sources(config: RunConfig, *, null: str | None = None) -> ModelSources:
    """The models that a bundled configuration names, each with its hook.

    Args:
        config: A configuration whose models are written `zoo:FAMILY/MEMBER`.
        null: A third model, written likewise or as a folder.
    """
    paths = {name: bundled_path(model.path) for name, model in config.models().items()}
    third = None if null is None else bundled_path(null)
    return load_pair(config, base=paths["base"], distilled=paths["distilled"], null=third)


@typed
def bundled_path(name: str) -> str:
    """Folder of a bundled model that is written `zoo:FAMILY/MEMBER`; any other name as it is.

    Args:
        name: Folder, Hub id or bundled name.

    Raises:
        ValueError: No such bundled model.
    """
    if not name.startswith(ZOO):
        return name
    family, _, member = name.removeprefix(ZOO).partition("/")
    return str(model_path(family, member))


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


@typed
def demo_data(sources: ModelSources, config: RunConfig) -> DemoData:
    """Fresh text of every kind; seeds are apart from those that trained the models.

    Args:
        sources: The bundled models; the distilled one writes the samples.
        config: Says how many tokens to train on, how long rows are, and the seed.
    """
    seed, length = 10 * config.seed + 1000, config.data.sequence_length
    assert config.data.n_tokens is not None  # `demo_config` says how many
    train = [
        text
        for origin, share in _TRAIN_SHARES.items()
        for text in write_documents(origin, n_tokens=int(share * config.data.n_tokens), seed=seed)
    ]
    random.Random(seed).shuffle(train)
    choose, score = held_out_splits(sources, config)
    return DemoData(train=pack_labelled(train, length=length), choose=choose, score=score)


@typed
def held_out_splits(sources: ModelSources, config: RunConfig) -> tuple[LabelledTokens, LabelledTokens]:
    """The two held-out splits of `demo_data` alone.

    Args:
        sources: As for `demo_data`.
        config: As for `demo_data`.
    """
    seed = 10 * config.seed + 1000
    texts = [
        [
            text
            for origin in _TRAIN_SHARES
            for text in write_documents(origin, n_tokens=_HELD_OUT_TOKENS // 2, seed=seed + split)
        ]
        + samples(sources, n=_N_SAMPLES // 2, seed=seed + split)
        for split in (1, 2)
    ]
    first, second = (pack_labelled(group, length=config.data.sequence_length) for group in texts)
    return first, second


def demo_corpus(data: DemoData) -> Corpus:
    """The training rows and both held-out splits together."""
    return dataclasses.replace(held_out_corpus([data.choose, data.score]), train=data.train.tokens)


@typed
def held_out_corpus(splits: Sequence[LabelledTokens]) -> Corpus:
    """Labeled splits as something to measure on, with the grammar's questions as answers.

    Args:
        splits: Labeled rows, in the order in which the corpus is to hold them.
    """
    answers = [category_contrasts(labels) for labels in splits]
    return Corpus(
        train=splits[0].tokens[:0],
        held_out=torch.cat([labels.tokens for labels in splits]),
        origin=torch.cat([labels.origin for labels in splits]),
        origins=ORIGINS,
        answers={name: torch.cat([answer[name] for answer in answers]) for name in answers[0]},
        exclude_token_ids=(token_ids()[END_OF_TEXT],),
    )
