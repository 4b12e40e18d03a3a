"""Mixing texts: each part gives its share, documents stay whole, nothing held out is trained on."""

from pathlib import Path

import pytest
import torch

from crosscoders.pipeline.config import DataConfig, TextPart
from crosscoders.pipeline.corpus import Corpus, corpus_from_text
from tests.data.toy_models import toy_tokenizer

N_WORDS = 10


@pytest.fixture
def mix(tmp_path: Path) -> dict[str, Path]:
    """Two files of documents of ten words; the words of one never occur in the other."""
    paths = {}
    for name, first, n in (("traces", 4, 300), ("general", 20, 100)):
        words = [" ".join(f"w{first + (i + j) % 16}" for j in range(N_WORDS)) for i in range(n)]
        paths[name] = tmp_path / f"{name}.txt"
        paths[name].write_text("\n\n".join(words))
    return paths


def n_tokens(corpus: Corpus, tokens: torch.Tensor) -> tuple[int, int]:
    kept = tokens[~torch.isin(tokens, torch.tensor(corpus.exclude_token_ids))]
    return int((kept < 20).sum()), int((kept >= 20).sum())


def data(**changes) -> DataConfig:
    return DataConfig(**{"held_out_tokens": 100, "sequence_length": 32, "n_tokens": 800, **changes})


def read(mix: dict[str, Path], weights: tuple[float, float], config: DataConfig) -> Corpus:
    parts = [TextPart(path=str(path), weight=w) for path, w in zip(mix.values(), weights, strict=True)]
    return corpus_from_text(parts, toy_tokenizer(), data=config, seed=0)


def test_each_part_gives_its_share_of_training_and_held_out_tokens(mix):
    corpus = read(mix, (3.0, 1.0), data())
    traces, general = n_tokens(corpus, corpus.train)
    assert abs(traces - 600) <= N_WORDS
    assert abs(general - 200) <= N_WORDS
    traces, general = n_tokens(corpus, corpus.held_out)
    assert abs(traces - 75) <= N_WORDS
    assert abs(general - 25) <= N_WORDS
    assert corpus.origins == ("traces", "general")


def test_origin_tells_the_part_of_each_held_out_token(mix):
    corpus = read(mix, (1.0, 1.0), data())
    is_general = (corpus.held_out >= 20) & (corpus.origin >= 0)
    assert torch.equal(corpus.origin == 1, is_general)


def test_without_n_tokens_the_scarcest_part_sets_the_size(mix):
    corpus = read(mix, (1.0, 1.0), data(n_tokens=None))
    traces, general = n_tokens(corpus, corpus.train)
    assert abs(traces - general) <= N_WORDS
    assert general > 900


def test_a_mix_of_one_file_reads_as_the_file(mix):
    path = str(mix["traces"])
    alone = corpus_from_text(path, toy_tokenizer(), data=data(), seed=3)
    part = corpus_from_text([TextPart(path=path)], toy_tokenizer(), data=data(), seed=3)
    assert torch.equal(alone.train, part.train)
    assert torch.equal(alone.held_out, part.held_out)


def test_unusable_mixes_raise(mix):
    with pytest.raises(ValueError, match=r"asks for 1000 tokens of .*general.txt, which has 9"):
        read(mix, (1.0, 1.0), data(n_tokens=2000))
    twice = [TextPart(path=str(mix["traces"])), TextPart(path=str(mix["traces"]))]
    with pytest.raises(ValueError, match="different names"):
        corpus_from_text(twice, toy_tokenizer(), data=data(), seed=0)
    with pytest.raises(ValueError, match="weight must be finite and positive, got 0"):
        TextPart(path="x", weight=0.0)


def test_the_name_of_the_whole_text_is_reserved():
    with pytest.raises(ValueError, match="stands for all parts together"):
        TextPart(path="folder/all.txt")
    assert TextPart(path="folder/all.txt", name="web").name == "web"


def test_advice_on_too_little_text_can_be_followed(mix):
    with pytest.raises(ValueError, match="at most") as caught:
        read(mix, (1.0, 1.0), data(n_tokens=10_000))
    advised = int(str(caught.value).split("at most ")[1].split(",")[0])
    read(mix, (1.0, 1.0), data(n_tokens=advised))
