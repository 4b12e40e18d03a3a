"""The tokens of a run: what is trained on, what is held out, and what is known about each held-out token."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.harvest import ModelSources
from crosscoders.latents import TokenBatch
from crosscoders.models import pack_tokens, read_texts, tokenize_texts
from crosscoders.pipeline.config import DataConfig
from crosscoders.reasoning import lexical_contrasts


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Packed rows of token ids.

    Args:
        train: Rows to train on.
        held_out: Rows to measure on, none of them in `train`.
        origin: Kind of text of each held-out token, as an index into `origins`; -1 where it does not count.
        origins: Names of the kinds of text.
        answers: For each question one answer per held-out token: 1 yes, 0 no, -1 not asked.
        exclude_token_ids: Ids that are never served or measured (padding and other special tokens).
    """

    train: Int[Tensor, "batch pos"]
    held_out: Int[Tensor, "held_out pos"]
    origin: Int[Tensor, "held_out pos"]
    origins: tuple[str, ...] = ("text",)
    answers: Mapping[str, Int[Tensor, "held_out pos"]] = field(default_factory=dict)
    exclude_token_ids: tuple[int, ...] = ()

    @typed
    def counted(self, data: DataConfig) -> Bool[Tensor, "held_out pos"]:
        """Which held-out tokens are measured.

        Those of known origin, special tokens and leading positions left out.

        Args:
            data: Says how many leading positions.
        """
        return (self.origin >= 0) & self.kept(self.held_out, data)

    @typed
    def kept(self, tokens: Int[Tensor, "batch pos"], data: DataConfig) -> Bool[Tensor, "batch pos"]:
        """Which tokens count at all: not the excluded ids, not the leading positions.

        Args:
            tokens: Token ids.
            data: Says how many leading positions to leave out.
        """
        keep = ~torch.isin(tokens, torch.tensor(self.exclude_token_ids, dtype=torch.int64))
        keep[:, : data.skip_positions] = False
        return keep

    @typed
    def held_out_batches(self, sources: ModelSources, data: DataConfig) -> Iterator[TokenBatch]:
        """Held-out activations in the order of the text, a few rows of text at a time.

        Args:
            sources: The models that read it.
            data: Says how many rows at a time, and which positions count.

        Yields:
            The counted tokens of those rows; rows without any are left out.
        """
        keep = self.counted(data)
        for start in range(0, len(self.held_out), data.sequences_per_harvest):
            rows = slice(start, start + data.sequences_per_harvest)
            kept = keep[rows]
            if not bool(kept.any()):
                continue
            activations = sources.harvest(self.held_out[rows])
            yield TokenBatch(
                rows=activations[kept.to(activations.device)],
                token_ids=self.held_out[rows][kept],
                origin=self.origin[rows][kept],
                answers={name: answer[rows][kept] for name, answer in self.answers.items()},
            )


@typed
def training_batches(corpus: Corpus, data: DataConfig) -> list[Int[Tensor, "_ pos"]]:
    """The training rows in groups that go through the models together.

    Args:
        corpus: The tokens.
        data: Says how many rows make a group.
    """
    return list(corpus.train.split(data.sequences_per_harvest))


@typed
def corpus_from_text(path: str | Path, tokenizer: Any, *, data: DataConfig, seed: int) -> Corpus:
    """Tokenize a file of documents, hold whole documents out, and pack both parts.

    Args:
        path: `.txt` (documents between blank lines) or `.jsonl` (a "text" key per line).
        tokenizer: The tokenizer of both models.
        data: Lengths and sizes.
        seed: Chooses the held-out documents.

    Returns:
        The packed tokens, with the answers to the lexical questions.

    Raises:
        ValueError: No tokenizer, one without a token to fill rows with, or too little text to train on after
            holding some out.
    """
    if tokenizer is None:
        raise ValueError(
            "corpus_from_text: the models came without a tokenizer; pass one to load_sources, or token ids."
        )
    special = tuple(sorted(set(tokenizer.all_special_ids)))
    end = tokenizer.eos_token_id
    documents = tokenize_texts(read_texts(path), tokenizer, append_eos=end is not None)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    if pad is None:
        raise ValueError(
            "corpus_from_text: the tokenizer has neither a padding nor an end-of-text token to fill rows "
            "with; set tokenizer.pad_token."
        )
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed)).tolist()
    shuffled = [documents[at] for at in order]
    n_held_out = _documents_for(shuffled, data.held_out_tokens, special)
    rest = shuffled[n_held_out:]
    if not rest:
        raise ValueError(
            f"corpus_from_text: holding out {data.held_out_tokens} tokens takes all {len(documents)} "
            f"documents of {path}; give more text or lower data.held_out_tokens."
        )
    if data.n_tokens is not None:
        n_kept = sum(_n_kept(document, special) for document in rest)
        if n_kept < data.n_tokens:
            raise ValueError(
                f"corpus_from_text: data.n_tokens asks for {data.n_tokens} tokens, but {path} has {n_kept} "
                "beside the held-out ones; leave n_tokens out to train on all of them, or raise data.epochs."
            )
        rest = rest[: _documents_for(rest, data.n_tokens, special)]
    held_out = pack_tokens(shuffled[:n_held_out], length=data.sequence_length, pad_id=pad)
    train = pack_tokens(rest, length=data.sequence_length, pad_id=pad)
    return Corpus(
        train=train,
        held_out=held_out,
        origin=torch.where(torch.isin(held_out, torch.tensor(special)), -1, 0),
        answers=lexical_contrasts(held_out, tokenizer),
        exclude_token_ids=special,
    )


def _n_kept(document: list[int], special: tuple[int, ...]) -> int:
    return sum(token not in special for token in document)


def _documents_for(documents: list[list[int]], n_tokens: int, special: tuple[int, ...]) -> int:
    """How many of the first documents hold `n_tokens` tokens; all of them if they hold fewer."""
    n_seen = 0
    for at, document in enumerate(documents):
        n_seen += _n_kept(document, special)
        if n_seen >= n_tokens:
            return at + 1
    return len(documents)
