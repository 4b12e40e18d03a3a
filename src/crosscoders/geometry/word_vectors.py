"""One vector per word and source: the activation at the word's last token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.geometry.word_pairs import WordTask
from crosscoders.harvest import ModelSources
from crosscoders.sources import column_slices

Words = WordTask | Sequence[WordTask] | Mapping[str, Sequence[tuple[str, str]]] | Sequence[tuple[str, str]]
"""Word pairs as callers have them: tasks, pairs by task name, or the bare pairs of one task."""

_FEWEST_PAIRS = 2
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class KnownTask:
    """The pairs of a task whose words the tokenizer knows.

    Args:
        name: Name of the task.
        pairs: Rows of each pair's input and output in `WordVectors.vectors`.
        n_unknown: Different words of the task that hold an unknown token.
        n_dropped: Pairs left out because of them.
    """

    name: str
    pairs: Int[Tensor, "_pair 2"]
    n_unknown: int
    n_dropped: int


@dataclass(frozen=True, kw_only=True)
class WordVectors:
    """Vectors of the words of some tasks in every source.

    Args:
        tasks: Tasks with at least two known pairs.
        vectors: For each source one raw activation per different token sequence, float32 on the CPU; words
            with the same tokens share a row.
        skipped: Tasks left out, with the reason.
    """

    tasks: tuple[KnownTask, ...]
    vectors: Mapping[str, Float[Tensor, "_word _width"]]
    skipped: Mapping[str, str]


@typed
def as_word_tasks(words: Words) -> tuple[WordTask, ...]:
    """Bring word pairs into the form of tasks; bare pairs become one task named "pairs".

    Args:
        words: Tasks, pairs by task name, or bare pairs.

    Raises:
        ValueError: No pairs, or two tasks of one name.
    """
    if isinstance(words, WordTask):
        tasks = (words,)
    elif isinstance(words, Mapping):
        tasks = tuple(WordTask(name=name, pairs=tuple(pairs)) for name, pairs in words.items())
    elif all(isinstance(entry, WordTask) for entry in words):
        tasks = tuple(entry for entry in words if isinstance(entry, WordTask))
    else:
        bare = tuple(entry for entry in words if not isinstance(entry, WordTask))
        tasks = (WordTask(name="pairs", pairs=bare),)
    names = [task.name for task in tasks]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"word tasks: expected at least one, each with a name of its own, got {names}.")
    return tasks


@typed
def read_word_vectors(
    sources: ModelSources,
    tasks: Sequence[WordTask],
    *,
    prefix: str = "",
    strict: bool = False,
    batch_words: int = 256,
) -> WordVectors:
    """Run every different word through the models and keep the activation at its last token.

    Each word is a sequence of its own, without special tokens beyond what `prefix` writes. A pair with a word
    that holds an unknown token is left out and counted, and so is a task with fewer than two pairs left.

    Args:
        sources: Models, their hooks and their tokenizer.
        tasks: Word pairs.
        prefix: Text before every word, such as a space or the tokenizer's BOS token; empty for the bare word.
        strict: Raise at an unknown word.
        batch_words: Words that go through the models together.

    Returns:
        The vectors, and which pairs they belong to.

    Raises:
        ValueError: No tokenizer, no task with two known pairs, or an unknown word where `strict`.
    """
    ids_of = _TokenIds(sources.tokenizer, prefix)
    rows: dict[tuple[int, ...], int] = {}
    known: list[KnownTask] = []
    skipped: dict[str, str] = {}
    for task in tasks:
        unknown = sorted({word for pair in task.pairs for word in pair if ids_of(word) is None})
        pairs = [
            (a, b) for x, y in task.pairs if (a := ids_of(x)) is not None and (b := ids_of(y)) is not None
        ]
        about = _about(task, n_known=len(pairs), unknown=unknown)
        if unknown and strict:
            raise ValueError(f"word vectors: {about}; leave strict=False to drop these pairs.")
        if len(pairs) < _FEWEST_PAIRS:
            skipped[task.name] = about
            continue
        numbers = [[rows.setdefault(ids, len(rows)) for ids in pair] for pair in pairs]
        known.append(
            KnownTask(
                name=task.name,
                pairs=torch.tensor(numbers),
                n_unknown=len(unknown),
                n_dropped=len(task.pairs) - len(pairs),
            )
        )
    if not known:
        raise ValueError(
            f"word vectors: no task has {_FEWEST_PAIRS} pairs of known words: {'; '.join(skipped.values())}."
        )
    vectors = _last_token_vectors(sources, list(rows), batch_words=batch_words)
    return WordVectors(tasks=tuple(known), vectors=vectors, skipped=skipped)


def _about(task: WordTask, *, n_known: int, unknown: list[str]) -> str:
    words = (
        f"; unknown words: {unknown[:_SHOWN]}{', ...' if len(unknown) > _SHOWN else ''}" if unknown else ""
    )
    return f"task {task.name!r} has {n_known} of {len(task.pairs)} pairs with known words{words}"


class _TokenIds:
    """Token ids of words, each tokenized once; None for a word that holds an unknown token."""

    def __init__(self, tokenizer: Any, prefix: str) -> None:
        if tokenizer is None:
            raise ValueError(
                "word vectors: the models came without a tokenizer; pass load_sources(..., tokenizer=...)."
            )
        self._tokenizer, self._prefix = tokenizer, prefix
        self._known: dict[str, tuple[int, ...] | None] = {}
        # A prefix may itself be the token that stands for unknown ones, as end-of-text does for some.
        self._expected_unknown = self._n_unknown(self._encode(prefix)) if prefix else 0

    def __call__(self, word: str) -> tuple[int, ...] | None:
        if word not in self._known:
            ids = self._encode(self._prefix + word)
            if not ids:
                raise ValueError(f"word vectors: {self._prefix + word!r} has no tokens.")
            self._known[word] = ids if self._n_unknown(ids) <= self._expected_unknown else None
        return self._known[word]

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _n_unknown(self, ids: tuple[int, ...]) -> int:
        return ids.count(self._tokenizer.unk_token_id) if self._tokenizer.unk_token_id is not None else 0


def _last_token_vectors(
    sources: ModelSources, words: list[tuple[int, ...]], *, batch_words: int
) -> dict[str, Tensor]:
    """Activations at the last token of each sequence; those of like length go through the models together."""
    order = sorted(range(len(words)), key=lambda at: len(words[at]))
    vectors: Tensor | None = None
    for start in range(0, len(order), batch_words):
        at = order[start : start + batch_words]
        longest = len(words[at[-1]])
        tokens = torch.tensor([[*words[i], *[0] * (longest - len(words[i]))] for i in at])
        last = torch.tensor([len(words[i]) - 1 for i in at])
        harvested = sources.harvest(tokens).cpu()[torch.arange(len(at)), last]
        vectors = harvested.new_empty(len(words), harvested.shape[1]) if vectors is None else vectors
        vectors[torch.tensor(at)] = harvested
    assert vectors is not None  # there are words
    slices = column_slices(sources.sources)
    return {name: vectors[:, columns].contiguous() for name, columns in slices.items()}
