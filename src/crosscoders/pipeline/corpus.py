"""The tokens of a run: what is trained on, what is held out, and what is known about each held-out token."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.errors import AdapterMismatchError
from crosscoders.harvest import ModelSources
from crosscoders.latents import TokenBatch
from crosscoders.models import IdPolicy, check_round_trip, pack_tokens, stream_texts, stream_tokens
from crosscoders.pipeline.config import DataConfig, TextPart
from crosscoders.reasoning import lexical_contrasts

_ROUND_TRIP_DOCUMENTS = 64


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
            The counted tokens of those rows, without the ids that the sources exclude; rows without any are
            left out.
        """
        theirs = torch.tensor(sources.exclude_token_ids, dtype=torch.int64)
        keep = self.counted(data) & ~torch.isin(self.held_out, theirs)
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
                sequence=start + kept.nonzero()[:, 0],
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
def corpus_from_text(
    text: str | Path | Sequence[TextPart],
    tokenizer: Any,
    *,
    data: DataConfig,
    seed: int,
    id_policy: IdPolicy | None = None,
    tokenizers: Mapping[str, Any] | None = None,
) -> Corpus:
    """Tokenize files of documents, hold whole documents out, and pack both parts.

    In a mix every part gives its weight's share of the held-out and of the training tokens; without
    `data.n_tokens` there are as many training tokens as the scarcest part allows.

    Some documents of each part are decoded again first: a tokenizer that loses spaces or newlines raises.
    Ids that `id_policy` drops are taken out of the documents, those that it masks or replaces stay and are
    neither served nor measured. Where the padding id itself is dropped, the lowest added token without a rule
    fills the rows, special ones first, and is not served either. Token ids are kept at four bytes each until
    they are packed at eight.

    Args:
        text: A file that `stream_texts` reads, or a mix of such files.
        tokenizer: The tokenizer of the token ids; its chat template renders chats.
        data: Lengths and sizes.
        seed: Chooses the held-out documents, and the order of all.
        id_policy: What `resolve_policy` returned for the models' tokenizers.
        tokenizers: Tokenizer of each source by name; those for which the policy replaces ids are needed to
            verify the replaced rows.

    Returns:
        The packed tokens, with the answers to the lexical questions; one kind of text per part.

    Raises:
        AdapterMismatchError: Text that does not survive the tokenizer, or replaced rows that do not survive
            their source's.
        ValueError: No tokenizer, one without a token to fill rows with, a mix of no or of equally named
            parts, or too little text to train on after holding some out.
    """
    if tokenizer is None:
        raise ValueError(
            "corpus_from_text: the models came without a tokenizer; pass one to load_sources, or token ids."
        )
    policy = IdPolicy() if id_policy is None else id_policy
    pad = _pad_id(tokenizer, policy)
    special = tuple(sorted({pad, *tokenizer.all_special_ids, *policy.excluded_ids}))
    parts = _splits(text, tokenizer, data=data, seed=seed, special=special, policy=policy)
    held_out = [pack_tokens(part.held_out, length=data.sequence_length, pad_id=pad) for part in parts]
    train = [document for part in parts for document in part.train]
    if len(parts) > 1:
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
        train = [train[at] for at in order]
    rows = torch.cat(held_out)
    kind = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([len(part) for part in held_out]))
    packed = pack_tokens(train, length=data.sequence_length, pad_id=pad)
    _check_replaced((packed, rows), policy, tokenizers or {})
    return Corpus(
        train=packed,
        held_out=rows,
        origin=torch.where(torch.isin(rows, torch.tensor(special)), -1, kind[:, None]),
        origins=tuple(part.name for part in parts),
        answers=lexical_contrasts(rows, tokenizer),
        exclude_token_ids=special,
    )


def _pad_id(tokenizer: Any, policy: IdPolicy) -> int:
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad is None:
        raise ValueError(
            "corpus_from_text: the tokenizer has neither a padding nor an end-of-text token to fill rows "
            "with; set tokenizer.pad_token."
        )
    if pad not in policy.drop_ids:
        return pad
    added = {index: token.special for index, token in tokenizer.added_tokens_decoder.items()}
    left = sorted(set(added) - set(policy.covered_ids), key=lambda index: (not added[index], index))
    if not left:
        raise ValueError(
            f"corpus_from_text: id_policy drops the padding id {pad}, and the tokenizer has no other added "
            "token that is left as it is, so nothing can fill rows; mask that id instead, or set "
            "tokenizer.pad_token to a token that means the same to all models."
        )
    return left[0]


def _check_replaced(token_rows: Sequence[Tensor], policy: IdPolicy, tokenizers: Mapping[str, Any]) -> None:
    for source in dict.fromkeys(rule.source for rule in policy.rules if rule.action == "replace"):
        if tokenizers.get(source) is None:
            raise ValueError(
                f"corpus_from_text: id_policy replaces ids for source {source!r}; pass its tokenizer in "
                f"tokenizers= to verify the replaced rows (got those of {sorted(tokenizers)})."
            )
        for tokens in token_rows:
            report = policy.verify_retokenised(tokens, tokenizers[source], source)
            if report.n_rows_lost:
                raise AdapterMismatchError(
                    f"corpus_from_text: of {report.n_rows} rows in which id_policy replaces ids for source "
                    f"{source!r}, {report.n_rows_lost} come out different when decoded and encoded again "
                    f"({report.n_positions_lost} positions; {report.n_positions} were replaced): the neutral "
                    "token merges with its neighbors. Choose an added token such as '<|fim_pad|>'."
                )


@dataclass(frozen=True, kw_only=True)
class _Split:
    """Documents of one part of the text."""

    name: str
    train: list[np.ndarray]
    held_out: list[np.ndarray]


def _splits(
    text: str | Path | Sequence[TextPart],
    tokenizer: Any,
    *,
    data: DataConfig,
    seed: int,
    special: tuple[int, ...],
    policy: IdPolicy,
) -> list[_Split]:
    is_one = isinstance(text, str | Path)
    mix = [TextPart(path=str(text), name="text")] if is_one else list(text)
    if not mix or len({part.name for part in mix}) < len(mix):
        raise ValueError(
            f"corpus_from_text: a mix needs parts with different names, got {[part.name for part in mix]}."
        )
    share = [part.weight / sum(part.weight for part in mix) for part in mix]
    pools = []
    for part, fraction in zip(mix, share, strict=True):
        documents = _documents(part, tokenizer, policy)
        order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed)).tolist()
        shuffled = [documents[at] for at in order]
        wanted = max(1, round(fraction * data.held_out_tokens))
        n_held_out = _documents_for(shuffled, wanted, special)
        if n_held_out == len(shuffled):
            raise ValueError(
                f"corpus_from_text: holding out {wanted} tokens takes all {len(documents)} documents of "
                f"{part.path}; give more text or lower data.held_out_tokens."
            )
        pools.append(_Split(name=part.name, held_out=shuffled[:n_held_out], train=shuffled[n_held_out:]))
    sizes = [sum(_n_kept(document, special) for document in pool.train) for pool in pools]
    total = data.n_tokens
    if total is None and len(mix) > 1:
        total = int(min(size / fraction for size, fraction in zip(sizes, share, strict=True)))
    if total is None:
        return pools
    for part, size, fraction in zip(mix, sizes, share, strict=True):
        if size < int(fraction * total):
            raise ValueError(
                f"corpus_from_text: data.n_tokens asks for {int(fraction * total)} tokens of {part.path}, "
                f"which has {size} beside the held-out ones; set data.n_tokens to at most "
                f"{int(min(s / f for s, f in zip(sizes, share, strict=True)))}, and raise data.epochs to see "
                "them more often."
            )
    return [
        dataclasses.replace(
            pool, train=pool.train[: _documents_for(pool.train, int(fraction * total), special)]
        )
        for pool, fraction in zip(pools, share, strict=True)
    ]


def _documents(part: TextPart, tokenizer: Any, policy: IdPolicy) -> list[np.ndarray]:
    """Token ids of all documents of a part, after a look at whether the first of them survive."""
    texts = stream_texts(part.path, format=part.format, tokenizer=tokenizer)
    sample = list(itertools.islice(texts, _ROUND_TRIP_DOCUMENTS))
    check_round_trip(sample, tokenizer, name=f"corpus_from_text: {part.path}")
    append_eos = tokenizer.eos_token_id is not None
    documents = stream_tokens(itertools.chain(sample, texts), tokenizer, append_eos=append_eos)
    return policy.drop_from(list(documents))


def _n_kept(document: np.ndarray, special: tuple[int, ...]) -> int:
    return int((~np.isin(document, special)).sum())


def _documents_for(documents: list[np.ndarray], n_tokens: int, special: tuple[int, ...]) -> int:
    """How many of the first documents hold `n_tokens` tokens; all of them if they hold fewer."""
    n_seen = 0
    for at, document in enumerate(documents):
        n_seen += _n_kept(document, special)
        if n_seen >= n_tokens:
            return at + 1
    return len(documents)
