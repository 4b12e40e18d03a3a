"""The bundled pair's material against its grammar, read independently as text."""

import random
import re

import pytest
import torch

from crosscoders.experiments.bundled_material import bundled_material, count_acts, token_roles
from crosscoders.reasoning import CATEGORIES
from crosscoders.reasoning.roles import ROLES
from crosscoders.zoo.corpus import LabelledTokens, pack_labelled, write_documents
from crosscoders.zoo.parser import to_text
from crosscoders.zoo.text import FORMS
from crosscoders.zoo.traces import write_trace
from crosscoders.zoo.vocabulary import token_ids


@pytest.fixture(scope="module")
def labels() -> LabelledTokens:
    texts = [
        t for kind in ("story", "solution", "trace") for t in write_documents(kind, n_tokens=3000, seed=5)
    ]
    random.Random(0).shuffle(texts)
    return pack_labelled(texts)


def test_markers_are_the_marker_words_of_acts(labels):
    markers = bundled_material([labels]).markers
    assert tuple(markers) == CATEGORIES
    for category, mask in markers.items():
        words = {token_ids()["\u2581" + word] for word in FORMS[category]}
        assert set(labels.tokens[mask].tolist()) == words
        index = CATEGORIES.index(category)
        assert bool((labels.function[mask] == index).all())
        before = set(labels.tokens[:, :-1][mask[:, 1:]].tolist())
        assert before <= {token_ids()["."], token_ids()["?"]}  # an act starts a sentence


def test_roles_split_a_trace_where_its_text_says(labels):
    trace = write_trace(random.Random(3))
    roles = token_roles(pack_labelled([trace]))[0][: len(trace)]
    said = {name: to_text([i for i, r in zip(trace.ids, roles.tolist(), strict=True) if ROLES[r] == name])
            for name in ROLES}  # fmt: skip
    text = to_text(trace.ids)
    asked, rest = re.fullmatch(r"\s*Question:(.*)Thoughts:(.*)", text).groups()
    thought, answer = rest.split("Answer:")
    assert said["template"].split() == ["Question:", "Thoughts:", "Answer:"]
    assert said["prompt"].split() == asked.split()
    assert said["thought"].split() == thought.split()
    assert said["answer"].split() == answer.split()


def test_text_without_a_question_has_no_roles(labels):
    roles = token_roles(labels)
    is_story = labels.origin == 0
    assert bool((roles[is_story] == -1).all())
    assert bool((roles[labels.is_prompt & ~is_story] >= 0).all())
    assert bool((roles[~labels.is_text] == -1).all())


def test_prompts_come_with_answers_that_the_grader_accepts(labels):
    material = bundled_material([labels])
    assert len({prompt.ids for prompt in material.prompts}) == len(material.prompts) == 200
    prompt = material.prompts[0]
    assert material.grade is not None
    assert material.grade(f" First, so it is. Answer: {prompt.reference}.", prompt.reference)
    assert not material.grade(f" Answer: {int(prompt.reference) + 1}.", prompt.reference)


def test_counting_acts_finds_each_category():
    trace = write_trace(random.Random(8))
    starts = [CATEGORIES[c] for c in trace.onset if c >= 0]
    assert count_acts(trace.ids) == {name: starts.count(name) for name in CATEGORIES}
    assert not torch.tensor(list(count_acts(()).values())).any()
