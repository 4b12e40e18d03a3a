"""From text to packed rows: the id policy, lossy tokenizers, chats, and the memory that it takes."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers

from crosscoders.errors import AdapterMismatchError
from crosscoders.harvest import load_sources
from crosscoders.models import IdPolicy, IdRule, load_model, pack_tokens, stream_tokens, tokenize_texts
from crosscoders.pipeline.config import DataConfig, TextPart
from crosscoders.pipeline.corpus import Corpus, corpus_from_text
from tests.data.real_tokenizers import qwen_tokenizer, r1_tokenizer, r1_traces
from tests.data.toy_models import toy_model, toy_tokenizer

PAD, EOS = 0, 1


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Documents of ten words each; w5 and w9 stand in every one."""
    documents = ["w5 w9 " + " ".join(f"w{10 + (i + j) % 20}" for j in range(8)) for i in range(60)]
    (tmp_path / "words.txt").write_text("\n\n".join(documents))
    return tmp_path / "words.txt"


def read(text: Path, policy: IdPolicy | None = None, **changes) -> Corpus:
    config = DataConfig(held_out_tokens=100, sequence_length=24)
    tokenizer = changes.pop("tokenizer", toy_tokenizer())
    return corpus_from_text(text, tokenizer, data=config, seed=0, id_policy=policy, **changes)


def policy_of(action: str, *ids: int, **more) -> IdPolicy:
    return IdPolicy(rules=(IdRule(action=action, token_ids=ids, **more),))


def test_dropped_ids_are_nowhere_and_the_rest_stays_in_order(text):
    plain, dropped = read(text), read(text, policy_of("drop", 5, 9))
    for before, after in ((plain.train, dropped.train), (plain.held_out, dropped.held_out)):
        assert bool(torch.isin(before, torch.tensor([5, 9])).any())
        assert not bool(torch.isin(after, torch.tensor([5, 9])).any())
    ids = torch.cat([dropped.train.flatten(), dropped.held_out.flatten()])
    counts = torch.bincount(torch.cat([plain.train.flatten(), plain.held_out.flatten()]), minlength=40)
    assert torch.equal(torch.bincount(ids, minlength=40)[10:], counts[10:])  # nothing else is lost


def test_masked_ids_stay_and_are_neither_served_nor_measured(text):
    plain, masked = read(text), read(text, policy_of("mask", 5, 9))
    ids = [torch.cat([c.train.flatten(), c.held_out.flatten()]) for c in (masked, plain)]
    counts = [torch.bincount(every, minlength=40)[1:] for every in ids]  # all but the padding
    assert torch.equal(*counts)
    assert set(masked.exclude_token_ids) == {*plain.exclude_token_ids, 5, 9}
    is_masked = torch.isin(masked.held_out, torch.tensor([5, 9]))
    assert bool((masked.origin[is_masked] == -1).all())
    config = DataConfig(held_out_tokens=100, sequence_length=24)
    assert not bool(masked.counted(config)[is_masked].any())
    assert not bool(masked.kept(masked.train, config)[torch.isin(masked.train, torch.tensor([5, 9]))].any())


def test_what_the_sources_exclude_is_not_measured_in_a_corpus_that_does_not_say_so(text):
    pair = {"base": toy_tokenizer(), "distilled": toy_tokenizer(swapped=(5, 9))}
    models = {name: load_model(toy_model(), name=name, tokenizer=pair[name]) for name in pair}
    sources = load_sources(models, id_policy="mask")
    config = DataConfig(held_out_tokens=100, sequence_length=24)
    corpus = read(text)
    measured = torch.cat([batch.token_ids for batch in corpus.held_out_batches(sources, config)])
    is_other = ~torch.isin(corpus.held_out, torch.tensor([5, 9]))
    assert torch.equal(measured, corpus.held_out[corpus.counted(config) & is_other])


def test_where_the_padding_id_is_dropped_another_special_id_fills_the_rows(text):
    corpus = read(text, policy_of("drop", PAD, 5))
    assert not bool((corpus.train == PAD).any())
    assert int(corpus.train[-1, -1]) in {EOS, 2}
    assert int(corpus.train[-1, -1]) in corpus.exclude_token_ids
    with pytest.raises(ValueError, match="no other added token"):
        read(text, policy_of("drop", 0, 1, 2))


def test_replaced_rows_are_verified_with_the_sources_own_tokenizer(text):
    policy = policy_of("replace", 5, 9, source="base", neutral=30)
    corpus = read(text, policy, tokenizers={"base": toy_tokenizer()})
    assert set(corpus.exclude_token_ids) >= {5, 9}
    assert bool((corpus.train == 5).any())  # the other source reads it
    with pytest.raises(ValueError, match=r"source 'base'; pass its tokenizer in tokenizers="):
        read(text, policy)
    other = {"base": toy_tokenizer(swapped=(30, 2))}  # 30 is its unknown word there
    other["base"].add_tokens(["<unk>w"])
    with pytest.raises(AdapterMismatchError, match=r"of \d+ rows .* source 'base', \d+ come out different"):
        read(text, policy_of("replace", 5, 9, source="base", neutral=41), tokenizers=other)


def test_a_tokenizer_that_loses_spaces_is_refused_before_anything_is_read(text):
    broken = toy_tokenizer()
    broken.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    with pytest.raises(AdapterMismatchError, match=r"words\.txt: 60 of 60 texts.*Metaspace.*tokenizer_file="):
        read(text, tokenizer=broken)


def test_the_real_pair_reads_chats_with_a_policy_for_its_seven_ids(tmp_path, data_file):
    tokenizer = r1_tokenizer(data_file)
    prompts, answers = zip(*(trace.split("<think>", 1) for trace in r1_traces(data_file)), strict=True)
    messages = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": "<think>" + answer}]
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    path = tmp_path / "traces.jsonl"
    path.write_text("\n".join(json.dumps({"messages": turns}) for turns in messages), encoding="utf-8")
    neutral = IdRule(action="replace", token_ids=(151648, 151649), source="base", neutral=151662)
    rest = IdRule(action="drop", token_ids=tuple(range(151643, 151648)))
    config = DataConfig(held_out_tokens=8_000, sequence_length=512)
    corpus = corpus_from_text(
        [TextPart(path=str(path), format="chat")],
        tokenizer,
        data=config,
        seed=0,
        id_policy=IdPolicy(rules=(rest, neutral)),
        tokenizers={"base": qwen_tokenizer(data_file), "distilled": tokenizer},
    )
    rows = torch.cat([corpus.train, corpus.held_out])
    assert (int((rows == 151648).sum()), int((rows == 151649).sum())) == (20, 20)  # no thought was cut off
    assert not bool(torch.isin(rows, torch.arange(151643, 151648)).any())
    assert {151648, 151649} <= set(corpus.exclude_token_ids)


def test_dropping_all_changed_ids_leaves_the_real_tokenizer_a_token_to_fill_rows(tmp_path, data_file):
    (tmp_path / "a.txt").write_text("So I add 2 and 3.\n\n" * 40)
    policy = policy_of("drop", *range(151643, 151650))
    config = DataConfig(held_out_tokens=50, sequence_length=32)
    for tokenizer in (r1_tokenizer(data_file), qwen_tokenizer(data_file)):
        corpus = corpus_from_text(tmp_path / "a.txt", tokenizer, data=config, seed=0, id_policy=policy)
        assert int(corpus.train[-1, -1]) == 151650  # <|quad_start|>, the same to both
        assert 151650 in corpus.exclude_token_ids
        assert not bool(torch.isin(corpus.train, torch.arange(151643, 151650)).any())


def test_arrays_and_lists_tokenize_and_pack_alike():
    texts = ["w5 w6", "w7 <eos>", "w8 w9 w10 w11"]
    lists = tokenize_texts(iter(texts), toy_tokenizer(), append_eos=True)
    arrays = list(stream_tokens(texts, toy_tokenizer(), append_eos=True))
    assert [array.tolist() for array in arrays] == lists
    assert all(array.dtype == np.int32 for array in arrays)
    packed = [pack_tokens(documents, length=4, pad_id=0) for documents in (lists, arrays)]
    assert torch.equal(*packed)


def test_a_corpus_takes_less_than_sixteen_bytes_per_token(tmp_path):
    n_documents, n_words = 2_000, 255
    document = " ".join(f"w{4 + at % 30}" for at in range(n_words))
    path = tmp_path / "long.txt"
    path.write_text("\n\n".join([document] * n_documents))
    data = DataConfig(held_out_tokens=1_000, sequence_length=256)
    corpus_from_text(path, toy_tokenizer(), data=data, seed=0)  # what is cached once is cached now
    tracemalloc.start()
    corpus = corpus_from_text(path, toy_tokenizer(), data=data, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert corpus.train.numel() >= n_documents * n_words - 2_000
    assert peak / (n_documents * n_words) < 16


def test_a_part_of_unknown_format_raises(text):
    with pytest.raises((ValueError, TypeError), match="format"):
        TextPart(path=str(text), format="sharegpt")
