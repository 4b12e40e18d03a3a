"""`sweep`: the same prompts answered under several directions and strengths, measured and compared."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.interventions.sweeps.cache import SweepCache
from crosscoders.interventions.sweeps.directions import Direction
from crosscoders.interventions.sweeps.regimes import RegimeBounds
from crosscoders.interventions.sweeps.result import UNSTEERED, SteeredAnswers, SweepResult, with_collapsed
from crosscoders.interventions.sweeps.text_measures import (
    is_finished,
    loop_share,
    mean_log_probability,
    repetition,
)
from crosscoders.models.base import LanguageModel
from crosscoders.models.generate import generate


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """How a sweep generates, and how it compares.

    Args:
        strengths: Strengths to steer at; 0 is always run, once, whether it is named or not.
        max_new_tokens: Longest answer.
        stop_ids: Ids that end an answer.
        temperature: Sampling temperature; 0 decodes greedily.
        seed: Seed of the sampling, the same for each direction and strength, and of the resampling.
        batch_size: Prompts that are answered together.
        read_batch_size: Answers that are read together for their coherence.
        n_bootstrap: Resamples of the prompts behind each interval.
        confidence: Confidence of each interval.
        keep_answers: Prompts whose answers are kept for reading; None keeps all.
        bounds: What counts as collapsed, over-thinking and incisive.

    Raises:
        ValueError: Strengths that repeat or are not finite, or a number out of range.
    """

    strengths: tuple[int | float, ...] = (-0.6, -0.3, 0.0, 0.3, 0.6)
    max_new_tokens: int = 240
    stop_ids: tuple[int, ...] = ()
    temperature: float = 1.0
    seed: int = 0
    batch_size: int = 256
    read_batch_size: int = 16
    n_bootstrap: int = 2000
    confidence: float = 0.95
    keep_answers: int | None = 3
    bounds: RegimeBounds = field(default_factory=RegimeBounds)

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.strengths)) or len(set(self.strengths)) != len(self.strengths):
            raise ValueError(
                f"SweepOptions: strengths must be finite and all different, got {self.strengths}."
            )
        if not 0 < self.confidence < 1:
            raise ValueError(f"SweepOptions: confidence must lie between 0 and 1, got {self.confidence}.")
        for name in ("max_new_tokens", "batch_size", "read_batch_size", "n_bootstrap"):
            if getattr(self, name) < 1:
                raise ValueError(f"SweepOptions: {name} must be at least 1, got {getattr(self, name)}.")
        if self.keep_answers is not None and self.keep_answers < 0:
            raise ValueError(f"SweepOptions: keep_answers must be at least 0, got {self.keep_answers}.")


@typed
def sweep(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    directions: Sequence[Direction],
    options: SweepOptions,
    count_categories: Callable[[Sequence[int]], Mapping[str, int]] | None = None,
    grade: Callable[[str, str], bool] | None = None,
    references: Sequence[str | None] | None = None,
    decode: Callable[[Sequence[int]], str] | None = None,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SweepResult:
    """Answer the same prompts under each direction and strength, with the same sampling seed each time.

    Steering at one strength and reading one figure tells little: too strong a push breaks any model. So
    every strength is measured for length, repetition, coherence, category rates and accuracy, beside
    controls that are swept in the same way, and compared with strength 0 prompt by prompt.

    Args:
        model: The model to steer; edits that are active on it stay active, also while coherence is read.
        prompts: Token ids of each prompt. None may have served to choose a direction.
        directions: What to steer by, controls included; names all different.
        options: Strengths, sampling, statistics.
        count_categories: Number of acts of each category in the token ids of an answer; the same
            categories for every answer.
        grade: Whether an answer is right, given its reference (such as `GSM8KGrader().grade`).
        references: Reference of each prompt; None where there is none (its accuracy is undefined).
        decode: Text of an answer; the model's tokenizer without special tokens if None.
        cache: Folder that keeps finished answers of each direction and strength, created if missing; a
            sweep over the same prompts, model and directions goes on from there. Not while edits or other
            hooks are on the model.
        progress: Called with the sets of answers that are done and their total number.

    Returns:
        Values per prompt, from which means, paired differences and regimes follow.

    Raises:
        ValueError: No prompts or directions, two directions of one name, a grader without references or
            text, categories that differ between answers, or a cache with directions that have no key or the
            same one, or with a model that hooks act on.
    """
    _check(model, prompts, directions=directions, grade=grade, references=references, decode=decode)
    kept = None if cache is None else _open_cache(cache, model, prompts, directions, options=options)
    read = _Reader(
        prompts=prompts,
        options=options,
        count_categories=count_categories,
        grade=grade,
        references=[None] * len(prompts) if references is None else references,
        decode=decode or _tokenizer_decode(model),
    )
    steered_at = [float(strength) for strength in options.strengths if strength != 0]
    plan = [(direction, strength) for direction in directions for strength in steered_at]
    found: list[SteeredAnswers] = []
    for at, (direction, strength) in enumerate([(None, 0.0), *plan]):
        answers, coherence = _answered(model, prompts, direction, strength, options=options, cache=kept)
        found.append(read.answers(answers, coherence, direction=direction, strength=strength))
        if progress is not None:
            progress(at + 1, len(plan) + 1)
    return _result(found, options)


def _open_cache(
    folder: Path,
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    directions: Sequence[Direction],
    *,
    options: SweepOptions,
) -> SweepCache:
    _check_keys(directions)
    return SweepCache(
        folder,
        model=model,
        prompts=prompts,
        settings=_sampling(options),
        batch_size=options.read_batch_size,
    )


def _result(found: Sequence[SteeredAnswers], options: SweepOptions) -> SweepResult:
    """All answers, the unsteered ones first, with the collapsed ones marked."""
    strengths = options.strengths if 0 in options.strengths else sorted((*options.strengths, 0))
    rated = [with_collapsed(a, unsteered=found[0].values, bounds=options.bounds) for a in found]
    return SweepResult(
        unsteered=rated[0],
        steered=tuple(rated[1:]),
        strengths=tuple(map(float, strengths)),
        bounds=options.bounds,
        n_bootstrap=options.n_bootstrap,
        confidence=options.confidence,
        seed=options.seed,
    )


def _sampling(options: SweepOptions) -> dict[str, object]:
    """The options that the answers depend on."""
    names = ("max_new_tokens", "stop_ids", "temperature", "seed", "batch_size")
    return {name: getattr(options, name) for name in names}


def _answered(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    direction: Direction | None,
    strength: float,
    *,
    options: SweepOptions,
    cache: SweepCache | None,
) -> tuple[list[list[int]], Tensor]:
    """Answers and their coherence, from the cache if it holds them."""
    key = UNSTEERED if direction is None else direction.key
    if cache is not None:
        stored = cache.load(key, strength)
        if stored is not None:
            return stored
    answers = _generate(model, prompts, direction, strength, options=options)
    coherence = mean_log_probability(model, prompts, answers, batch_size=options.read_batch_size)
    if cache is not None:
        cache.store(key, strength, answers=answers, coherence=coherence)
    return answers, coherence


def _generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    direction: Direction | None,
    strength: float,
    *,
    options: SweepOptions,
) -> list[list[int]]:
    def answer() -> list[list[int]]:
        return generate(
            model,
            prompts,
            max_new_tokens=options.max_new_tokens,
            stop_ids=options.stop_ids,
            temperature=options.temperature,
            generator=torch.Generator(device=model.device).manual_seed(options.seed),
            batch_size=options.batch_size,
        )

    if direction is None:
        return answer()
    with direction.at(strength).on(model):
        return answer()


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """Turns answers into values per prompt."""

    prompts: Sequence[Sequence[int]]
    options: SweepOptions
    count_categories: Callable[[Sequence[int]], Mapping[str, int]] | None
    grade: Callable[[str, str], bool] | None
    references: Sequence[str | None]
    decode: Callable[[Sequence[int]], str] | None

    def answers(
        self,
        answers: Sequence[Sequence[int]],
        coherence: Tensor,
        *,
        direction: Direction | None,
        strength: float,
    ) -> SteeredAnswers:
        """Measure the answers of one direction and strength."""
        n = len(answers) if self.options.keep_answers is None else self.options.keep_answers
        return SteeredAnswers(
            direction=UNSTEERED if direction is None else direction.name,
            kind=UNSTEERED if direction is None else direction.kind,
            strength=strength,
            values={
                name: torch.tensor(column, dtype=torch.float64)
                for name, column in (self._plain(answers) | self._grades(answers)).items()
            }
            | {"coherence": coherence}
            | self._categories(answers),
            answers=tuple(tuple(ids) for ids in answers[:n]),
            texts=tuple("" if self.decode is None else self.decode(ids) for ids in answers[:n]),
        )

    def _plain(self, answers: Sequence[Sequence[int]]) -> dict[str, list[float]]:
        stop_ids = self.options.stop_ids
        return {
            "tokens": [float(len(ids)) for ids in answers],
            "finished": [float(is_finished(ids, stop_ids=stop_ids)) for ids in answers],
            "repetition": [repetition(ids) for ids in answers],
            "loop": [loop_share(ids) for ids in answers],
        }

    def _grades(self, answers: Sequence[Sequence[int]]) -> dict[str, list[float]]:
        if self.grade is None or self.decode is None:
            return {}
        return {
            "accuracy": [
                float("nan") if reference is None else float(self.grade(self.decode(ids), reference))
                for ids, reference in zip(answers, self.references, strict=True)
            ]
        }

    def _categories(self, answers: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        if self.count_categories is None:
            return {}
        counts = [self.count_categories(ids) for ids in answers]
        names = list(counts[0])
        if any(set(count) != set(names) for count in counts):
            raise ValueError(
                "sweep: count_categories must name the same categories for every answer (0 where there is "
                f"no act), got {sorted({name for count in counts for name in count})} over all answers but "
                f"{names} for the first."
            )
        tokens = torch.tensor([len(ids) for ids in answers], dtype=torch.float64)
        found = {}
        for name in names:
            column = torch.tensor([count[name] for count in counts], dtype=torch.float64)
            found |= {f"count/{name}": column, f"rate/{name}": 100 * column / tokens}
        return found


def _tokenizer_decode(model: LanguageModel) -> Callable[[Sequence[int]], str] | None:
    if model.tokenizer is None:
        return None
    return lambda ids: model.tokenizer.decode(list(ids), skip_special_tokens=True)


def _check(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    directions: Sequence[Direction],
    grade: Callable[[str, str], bool] | None,
    references: Sequence[str | None] | None,
    decode: Callable[[Sequence[int]], str] | None,
) -> None:
    if not prompts or not directions:
        raise ValueError(
            f"sweep: got {len(prompts)} prompts and {len(directions)} directions; pass at least one of each."
        )
    names = [direction.name for direction in directions]
    twice = sorted({name for name in names if names.count(name) > 1 or name == UNSTEERED})
    if twice:
        raise ValueError(f"sweep: directions need names of their own, none {UNSTEERED!r}; not so {twice}.")
    if references is not None and len(references) != len(prompts):
        raise ValueError(f"sweep: got {len(references)} references for {len(prompts)} prompts.")
    if grade is not None and references is None:
        raise ValueError("sweep: a grader needs the reference of each prompt; pass references=[...].")
    if grade is not None and decode is None and model.tokenizer is None:
        raise ValueError(
            f"sweep: a grader reads text, but {model.name!r} has no tokenizer; pass decode=..., which turns "
            "token ids into text."
        )


def _check_keys(directions: Sequence[Direction]) -> None:
    """What a cache tells directions by."""
    names: dict[str, str] = {}
    for direction in directions:
        if not direction.key:
            raise ValueError(
                f"sweep: direction {direction.name!r} has no key, which the cache needs; make it with "
                "additive_direction or pass Direction(key=...)."
            )
        if direction.key in names:
            raise ValueError(
                f"sweep: directions {names[direction.key]!r} and {direction.name!r} have the same key, so "
                "the cache would give one the answers of the other; pass Direction(key=...) of its own, or "
                "one of the two."
            )
        names[direction.key] = direction.name
