"""Steering samples for the report: what a model writes with a latent added, beside a random direction."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.crosscoder import Crosscoder
from crosscoders.harvest import ModelSources
from crosscoders.interventions.directions import AddVector, random_vector_like
from crosscoders.interventions.steering import SteeringHook
from crosscoders.models import LanguageModel
from crosscoders.models.generate import generate
from crosscoders.pipeline.bundled import is_bundled
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.corpus import Corpus
from crosscoders.zoo.base_text import prompt
from crosscoders.zoo.measure import MAX_NEW_TOKENS, held_out_problems
from crosscoders.zoo.vocabulary import encode, token_ids

_PROMPT_TOKENS, _ANSWER_TOKENS = 16, 96  # of a pair that does not bring its own problems


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What is continued and how, always with the most likely token."""

    model: LanguageModel
    tokenizer: Any
    prompts: list[list[int]]
    at_tokens: tuple[int, ...] | None
    stop_ids: tuple[int, ...]
    max_new_tokens: int

    def samples(self, steering: Any, *, strength: float, kind: str) -> list[dict[str, Any]]:
        """One continuation of each prompt with this steering; None for none."""
        with ExitStack() as stack:
            if steering is not None:
                stack.enter_context(steering.on(self.model))
            answers = generate(
                self.model, self.prompts, max_new_tokens=self.max_new_tokens, stop_ids=self.stop_ids
            )
        return [
            {
                "prompt": self.tokenizer.decode(ids),
                "strength": strength,
                "kind": kind,
                "text": self.tokenizer.decode(answer[:-1] if answer[-1] in self.stop_ids else answer),
                "is_finished": answer[-1] in self.stop_ids,
            }
            for ids, answer in zip(self.prompts, answers, strict=True)
        ]


@typed
def steering_samples(
    crosscoder: Crosscoder,
    sources: ModelSources,
    *,
    latents: Sequence[int],
    config: RunConfig,
    strengths: Sequence[int | float] = (-0.6, 0.6),
    n_prompts: int = 3,
    seed: int = 0,
    prompts: Sequence[str] | None = None,
    corpus: Corpus | None = None,
    max_new_tokens: int | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Greedy continuations by the last source's model: unsteered, by each latent, by a random direction.

    At strength s every steered position gets s * n * d / |d|, with d the latent's decoder row in that source
    and n its mean residual norm (`SteeringHook`); the control is a random direction of the same norm. The
    bundled pair answers held-out problems, steered at full stops as in the demo; other models are steered at
    every position.

    Args:
        crosscoder: The run's crosscoder.
        sources: Its models, whole.
        latents: Latents to steer by.
        config: Says whether the pair is the bundled one.
        strengths: In units of the mean residual norm; all different, none 0.
        n_prompts: Prompts that are drawn where none are given.
        seed: Chooses prompts and the random direction.
        prompts: Texts to continue; None draws problems, or beginnings of held-out rows.
        corpus: Its held-out text gives prompts to a pair that brings none.
        max_new_tokens: Longest continuation; None takes 240 for the bundled pair, 96 for others.

    Returns:
        By the latent's number as text: `prompt`, `strength`, `kind` ("none", "latent" or "random"), `text`
        and `is_finished` of each sample; prompt by prompt unsteered, then strength by strength both kinds.

    Raises:
        ValueError: No such latent, one twice or one without a direction; strengths that are 0, not finite or
            repeated; no tokenizer, no prompts or an empty one; a model that was read only up to its hook.
    """
    _check(crosscoder, latents, strengths, n_prompts)
    if not latents:
        return {}
    name = crosscoder.sources[-1].name
    with sources.on_device(name) as model:
        texts = _Texts(prompts=prompts, corpus=corpus, n=n_prompts, seed=seed)
        task = _task(model, sources, texts, name=name, is_own=is_bundled(config), longest=max_new_tokens)
        plain = task.samples(None, strength=0.0, kind="none")
        controls = _controls(crosscoder, task, strengths, like=latents[0], seed=seed)
        return {
            str(latent): _by_prompt([plain, *_steered(crosscoder, task, latent, strengths, controls)])
            for latent in latents
        }


@dataclass(frozen=True, kw_only=True)
class _Texts:
    """Where prompts come from."""

    prompts: Sequence[str] | None
    corpus: Corpus | None
    n: int
    seed: int

    def ids(self, tokenizer: Any, *, is_own: bool) -> list[list[int]]:
        """Ids of each prompt."""
        if self.prompts is not None:
            return [list(tokenizer(text)["input_ids"]) for text in self.prompts]
        if is_own:
            problems = held_out_problems(self.n, seed=self.seed)
            return [list(encode(prompt(problem))) for problem in problems]
        return [] if self.corpus is None else _beginnings(self.corpus, self.n, seed=self.seed)


def _task(
    model: LanguageModel,
    sources: ModelSources,
    texts: _Texts,
    *,
    name: str,
    is_own: bool,
    longest: int | None,
) -> _Task:
    tokenizer = sources.tokenizer if model.tokenizer is None else model.tokenizer
    if tokenizer is None:
        raise ValueError("steering_samples: the models have no tokenizer, so there is no text to show.")
    ids = texts.ids(tokenizer, is_own=is_own)
    if not ids or not all(ids):
        raise ValueError(
            f"steering_samples: got {len(ids)} prompts, {sum(not one for one in ids)} of them empty; pass "
            "prompts=[...] with text, or a corpus with held-out text."
        )
    end = tokenizer.eos_token_id
    return _Task(
        model=model,
        tokenizer=tokenizer,
        prompts=[sources.tokens_for(name, torch.tensor([one]))[0].tolist() for one in ids],
        at_tokens=(token_ids()["."],) if is_own else None,
        stop_ids=() if end is None else (end,),
        max_new_tokens=longest or (MAX_NEW_TOKENS if is_own else _ANSWER_TOKENS),
    )


def _steered(
    crosscoder: Crosscoder,
    task: _Task,
    latent: int,
    strengths: Sequence[int | float],
    controls: Sequence[list[dict[str, Any]]],
) -> list[list[dict[str, Any]]]:
    """At each strength the samples of the latent, then those of the control."""
    found = []
    for strength, control in zip(strengths, controls, strict=True):
        hook = SteeringHook(
            crosscoder, {latent: strength}, source=crosscoder.sources[-1].name, at_tokens=task.at_tokens
        )
        found += [task.samples(hook, strength=float(strength), kind="latent"), control]
    return found


def _controls(
    crosscoder: Crosscoder, task: _Task, strengths: Sequence[int | float], *, like: int, seed: int
) -> list[list[dict[str, Any]]]:
    """One random direction at each strength: in units of the residual norm all latents have one norm."""
    unit = SteeringHook(crosscoder, {like: 1.0}, source=crosscoder.sources[-1].name)
    vector = random_vector_like(unit.vector, generator=torch.Generator().manual_seed(seed))
    return [
        task.samples(
            AddVector(strength * vector, hook_name=unit.source.hook_name, at_tokens=task.at_tokens),
            strength=float(strength),
            kind="random",
        )
        for strength in strengths
    ]


def _by_prompt(groups: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [sample for of_prompt in zip(*groups, strict=True) for sample in of_prompt]


def _check(
    crosscoder: Crosscoder, latents: Sequence[int], strengths: Sequence[int | float], n_prompts: int
) -> None:
    is_there = all(0 <= latent < crosscoder.n_latents for latent in latents)
    if not is_there or len(set(latents)) != len(latents):
        raise ValueError(
            f"steering_samples: latents must be different numbers from 0 to {crosscoder.n_latents - 1}, got "
            f"{list(latents)}."
        )
    is_set = all(math.isfinite(strength) and strength != 0 for strength in strengths)
    if not strengths or not is_set or len(set(strengths)) != len(strengths):
        raise ValueError(
            "steering_samples: strengths must be finite, not 0 (which is always shown) and all different, "
            f"got {tuple(strengths)}."
        )
    if n_prompts < 1:
        raise ValueError(f"steering_samples: n_prompts must be at least 1, got {n_prompts}.")


def _beginnings(corpus: Corpus, n: int, *, seed: int) -> list[list[int]]:
    """The first tokens of some held-out rows, up to the first special token after the opening ones."""
    order = torch.randperm(len(corpus.held_out), generator=torch.Generator().manual_seed(seed))
    special = torch.tensor(corpus.exclude_token_ids, dtype=torch.int64)
    found = (_opening(row[:_PROMPT_TOKENS], special) for row in corpus.held_out[order])
    return [ids for ids in found if ids][:n]


def _opening(ids: Tensor, special: Tensor) -> list[int]:
    is_text = ~torch.isin(ids, special)
    if not bool(is_text.any()):
        return []
    first = int(is_text.nonzero()[0])
    after = (~is_text[first:]).nonzero().flatten()
    return ids[: first + int(after[0]) if len(after) else len(ids)].tolist()
