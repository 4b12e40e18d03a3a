"""Lexicons and the annotators that go by words; the tagged traces where they lie."""

import pytest
from benchmarks.lexical_annotator import TAGS, agreement, halves, read_sentences, report

from crosscoders.reasoning import CATEGORIES, LEXICON, LexicalAnnotator, read_lexicon
from crosscoders.reasoning.lexicon import PACKAGED_LEXICON

TRACES = "thought_anchors_r1_14b"


def written(tmp_path, text: str):
    path = tmp_path / "words.toml"
    path.write_text(text)
    return path


def test_the_packaged_lexicon_is_the_one_of_the_names():
    lexicon = read_lexicon()
    assert tuple(lexicon) == CATEGORIES
    assert {name: words.phrases for name, words in lexicon.items()} == LEXICON


def test_an_edited_copy_is_read(tmp_path):
    path = written(tmp_path, PACKAGED_LEXICON.read_text() + '\n[doubt]\nphrases = ["Perhaps"]\n')
    annotator = LexicalAnnotator(read_lexicon(path))
    assert annotator.categories("Perhaps. But no.") == {"doubt", "contrastive"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("phrases = [", "not a TOML file"),
        ("", "no category"),
        ("a = 1", r"\[a\]: expected a table"),
        ('[a]\nphrase = ["x"]', "unknown keys"),
        ("[a]\nphrases = [1]", "list of strings"),
        ("[a]\npatterns = ['x']", "at least one phrase"),
        ('[a]\nphrases = [" x"]', "outer spaces"),
        ("[a]\nphrases = ['x']\npatterns = ['(']", r"\[a\].*no regular expression"),
    ],
)
def test_a_bad_lexicon_says_where_and_what(tmp_path, text, said):
    with pytest.raises(ValueError, match=said) as caught:
        read_lexicon(written(tmp_path, text))
    assert "words.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("sentence", "categories"),
    [
        ("Wait, that is odd.", {"self-reflection"}),
        ("We must await the Waiter.", set()),
        ("Therefore, x = 4.", {"deductive"}),
        ("3 times 4 equals 12", {"deductive"}),
        ("Three times we went.", set()),
        ("3 * 4 is 12", {"deductive"}),
        ("So, maybe it is another triangle?", set()),
        ("Sofia sat.", set()),
        ("Alternatively, but not here, we add.", {"alternative"}),
        ("But it is However you like.", {"contrastive"}),
        ("", set()),
    ],
)
def test_phrases_keep_case_and_word_boundaries_and_unless_wins(sentence, categories):
    assert LexicalAnnotator().categories(sentence) == categories


def test_openers_are_spans_of_the_text_in_order():
    text = "So. Wait, let me see. So\nLet me check"
    openers = LexicalAnnotator().openers(text)
    assert [text[o.start : o.stop] for o in openers] == ["So", "Wait", "So", "Let me check"]


def test_halves_share_no_problem_and_cover_all_sentences(data_file):
    sentences = read_sentences(data_file(TRACES))
    parts = halves(sentences)
    problems = [{s.problem for s in part} for part in parts.values()]
    assert len(sentences) == 2885
    assert sum(map(len, parts.values())) == 2885
    assert [len(p) for p in problems] == [5, 5]
    assert not problems[0] & problems[1]


def test_reported_precision_and_recall_are_those_of_a_plain_count(data_file):
    annotator, sentences = LexicalAnnotator(), halves(read_sentences(data_file(TRACES)))["reporting"]
    for category, tags in TAGS.items():
        tp = fp = fn = 0
        for sentence in sentences:
            said, true = category in annotator.categories(sentence.text), bool(tags & sentence.tags)
            tp, fp, fn = tp + (said and true), fp + (said and not true), fn + (true and not said)
        found = agreement(annotator, sentences, category)
        assert found.precision == tp / (tp + fp)
        assert found.recall == tp / (tp + fn)
        assert found.f1 == pytest.approx(2 / (1 / found.precision + 1 / found.recall))
        assert found.precision > 1.2 * found.base_rate  # better than naming every sentence


def test_the_report_has_a_line_per_half_category_and_lexicon(data_file):
    lines = report(data_file(TRACES), read_lexicon())
    assert [line.split()[0] for line in lines] == ["half"] + ["tuning"] * 4 + ["reporting"] * 4
