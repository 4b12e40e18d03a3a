"""Text in, ids out, the same text back: what a tokenizer must not lose."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from crosscoders.errors import AdapterMismatchError
from crosscoders.models import check_round_trip, round_trip_loss
from crosscoders.models.round_trip import differing_positions
from tests.data.real_tokenizers import qwen_tokenizer, r1_folder, r1_tokenizer, r1_traces
from tests.data.toy_models import toy_tokenizer


def byte_tokenizer(*, splitting: object = None, form: object = None) -> PreTrainedTokenizerFast:
    """One token per byte; lossless unless told to split otherwise."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: at for at, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = splitting or pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if form is not None:
        core.normalizer = form
    return PreTrainedTokenizerFast(tokenizer_object=core)


def test_all_real_traces_survive_both_tokenizers(data_file):
    traces = r1_traces(data_file)
    assert len(traces) == 20
    for tokenizer in (qwen_tokenizer(data_file), r1_tokenizer(data_file)):
        report = round_trip_loss(traces, tokenizer)
        assert (report.n_texts, report.n_lost, report.first_text, report.position) == (20, 0, None, None)


def test_the_class_that_deepseek_tokenizers_declare_loses_every_space(tmp_path, data_file):
    """transformers 5 puts Metaspace in place of the file's byte-level splitting; the file itself is fine."""
    folder = r1_folder(tmp_path, data_file)
    traces = r1_traces(data_file)[:2]
    broken = LlamaTokenizer.from_pretrained(folder)
    with pytest.raises(
        AdapterMismatchError, match=r"2 of 2 texts.*class LlamaTokenizer, pre-tokenizer Metaspace"
    ):
        check_round_trip(traces, broken)
    check_round_trip(traces, PreTrainedTokenizerFast.from_pretrained(folder))


def test_a_metaspace_splitting_over_byte_level_tokens_is_caught_where_it_happens():
    broken = byte_tokenizer(splitting=pre_tokenizers.Metaspace(prepend_scheme="never"))
    texts = ["So", "So I\nneed to"]
    report = round_trip_loss(texts, broken)
    assert (report.n_texts, report.n_lost, report.first_text, report.position) == (2, 1, 1, 2)
    assert (report.expected, report.got) == (" I\nneed to", "Ineedto")
    with pytest.raises(AdapterMismatchError, match=r"part\.txt: 1 of 2.*character 2.*tokenizer_file="):
        check_round_trip(texts, broken, name="part.txt")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=4))
def test_a_byte_level_tokenizer_loses_nothing(texts: list[str]) -> None:
    assert round_trip_loss(texts, byte_tokenizer()).n_lost == 0
    assert round_trip_loss(texts, byte_tokenizer(form=normalizers.NFC())).n_lost == 0


def test_case_and_unknown_words_count_as_loss():
    assert round_trip_loss(["So it is"], byte_tokenizer(form=normalizers.Lowercase())).position == 0
    report = round_trip_loss(["w5 w6", "w5 word"], toy_tokenizer())
    assert (report.first_text, report.position, report.expected, report.got) == (1, 3, "word", "<unk>")


def test_a_text_that_loses_its_end_differs_where_it_stops():
    report = round_trip_loss(["w5 w6 "], toy_tokenizer())
    assert (report.position, report.expected, report.got) == (5, " ", "")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), max_size=12))
def test_positions_that_do_not_differ_come_back_in_their_order(row: list[int], other: list[int]) -> None:
    kept = [token for at, token in enumerate(row) if at not in differing_positions(row, other)]
    rest = iter(other)
    assert all(token in rest for token in kept)  # a subsequence
    assert differing_positions(row, row) == set()


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, 39), min_size=1, max_size=5))
def test_each_merged_pair_is_found_and_nothing_else(at: set[int]) -> None:
    row = [token for place in range(40) for token in (1, 2, 3, 100 + place, 7, 7 + place % 2)]
    merged = {6 * place + 3 for place in at}
    other = [999 if p in merged else t for p, t in enumerate(row) if p - 1 not in merged]
    assert differing_positions(row, other) == merged | {place + 1 for place in merged}


def test_long_rows_that_differ_in_many_places_are_compared_in_little_time() -> None:
    row = [(at * at) % 50 for at in range(60_000)]
    other = [token for at, token in enumerate(row) if at % 3_000 != 2_999]
    start = time.process_time()
    lost = differing_positions(row, other)
    assert time.process_time() - start < 2  # every pair of equal tokens: hours
    assert len(lost) == 20
