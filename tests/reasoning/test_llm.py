"""Annotating and judging through a fake endpoint: parsing, skipping, resuming, scoring."""

import json

import pytest
import torch

from crosscoders.reasoning import (
    Annotation,
    CategoryWords,
    ChatClient,
    EndpointConfig,
    LLMAnnotator,
    LLMJudge,
    annotate_latents,
    category_hints,
    detection_score,
    fuzzing_score,
)
from tests.reasoning.fake_endpoint import FakeEndpoint, completion
from tests.reasoning.snippet_cases import PLAIN, WAITS, snippet

GOOD = '{"explanation": "fires at Wait", "category": "self-reflection"}'
OTHERS = [snippet(f"the dog saw {word}", at=0) for word in "abcdefghijkl"]
SNIPPETS = {latent: [snippet(f"word{latent} . Wait", at=2)] for latent in range(6)}
ANNOTATION = Annotation(latent=0, category=None, score=float("nan"), explanation="fires at Wait")


def client_of(endpoint: FakeEndpoint, tmp_path, **changes) -> ChatClient:
    settings = {"timeout_s": 5.0, "max_retries": 1, **changes}
    config = EndpointConfig(base_url=endpoint.url, model="fake", **settings)
    return ChatClient(config, cache=tmp_path / "cache", sleep=lambda s: None)


def test_annotation_is_read_from_json_with_prose_around_it(tmp_path):
    with FakeEndpoint(lambda request, n: completion(f"Sure!\n```json\n{GOOD}\n```")).serving() as endpoint:
        found = LLMAnnotator(client_of(endpoint, tmp_path)).annotate(3, WAITS)
    assert (found.latent, found.category, found.explanation) == (3, "self-reflection", "fires at Wait")
    shown = endpoint.requests[0]["messages"][1]["content"]
    assert shown.splitlines()[0] == "10  it is 4 .[[ Wait]] , check that"


def test_none_is_an_answer_and_an_unknown_category_is_garbage(tmp_path):
    answers = [GOOD.replace("self-reflection", "none"), GOOD.replace("self-reflection", "haste")]
    with FakeEndpoint(lambda request, n: completion(answers[min(n, 2) - 1])).serving() as endpoint:
        annotator = LLMAnnotator(client_of(endpoint, tmp_path))
        report = annotate_latents(annotator, {0: SNIPPETS[0], 1: SNIPPETS[1]})
    assert report.annotations[0].category is None
    assert list(report.skipped) == [1]
    assert "haste" in report.skipped[1]


def test_an_endpoint_that_dies_leaves_what_was_done_and_a_second_run_asks_for_the_rest(tmp_path):
    with FakeEndpoint(lambda request, n: completion(GOOD) if n <= 4 else None).serving() as endpoint:
        annotator = LLMAnnotator(client_of(endpoint, tmp_path))
        report = annotate_latents(annotator, SNIPPETS, give_up_after=1)
    assert sorted(report.annotations) == [0, 1, 2, 3]
    assert sorted(report.skipped) == [4, 5]
    assert len(endpoint.requests) == 4 + 2  # latent 4 twice, latent 5 not at all
    with FakeEndpoint(lambda request, n: completion(GOOD)).serving() as second:
        annotator = LLMAnnotator(client_of(second, tmp_path))
        assert annotator.estimate(SNIPPETS).n_calls == 2
        again = annotate_latents(annotator, SNIPPETS)
    assert len(again.annotations) == 6
    assert len(second.requests) == 2
    assert annotator.client.report().n_cached == 4


def test_a_refused_key_stops_at_once(tmp_path):
    with FakeEndpoint(lambda request, n: (401, {}, b"no")).serving() as endpoint:
        report = annotate_latents(LLMAnnotator(client_of(endpoint, tmp_path)), SNIPPETS)
    assert len(report.skipped) == 6
    assert len(endpoint.requests) == 1


def test_a_question_that_is_refused_costs_only_its_latent(tmp_path):
    with FakeEndpoint(
        lambda request, n: (400, {}, b"too long") if n in (2, 4) else completion(GOOD)
    ).serving() as endpoint:
        report = annotate_latents(LLMAnnotator(client_of(endpoint, tmp_path)), SNIPPETS)
    assert sorted(report.skipped) == [1, 3]
    assert len(endpoint.requests) == 6


@pytest.mark.parametrize("said", ["Proof Step", "proof step", " PROOF STEP "])
def test_a_category_is_found_whatever_its_case_and_named_as_it_was_given(tmp_path, said):
    answer = json.dumps({"explanation": "x", "category": said})
    with FakeEndpoint(lambda request, n: completion(answer)).serving() as endpoint:
        annotator = LLMAnnotator(client_of(endpoint, tmp_path), categories={"Proof Step": "a step"})
        assert annotator.annotate(0, WAITS).category == "Proof Step"


def test_a_category_named_none_is_refused(tmp_path):
    endpoint = FakeEndpoint(lambda request, n: completion(GOOD))
    endpoint.url = "http://localhost"
    with pytest.raises(ValueError, match="None"):
        LLMAnnotator(client_of(endpoint, tmp_path), categories={"None": "a step"})


def test_hints_of_categories_of_ones_own_name_their_words():
    own = {"deductive": CategoryWords(phrases=("So",)), "doubt": CategoryWords(phrases=("Perhaps", "Hm"))}
    hints = category_hints(own)
    assert list(hints) == ["deductive", "doubt"]
    assert "conclusion" in hints["deductive"]
    assert "'Perhaps', 'Hm'" in hints["doubt"]


def test_a_judge_gives_up_after_failures_in_a_row_and_says_how_many_it_left(tmp_path):
    with FakeEndpoint(lambda request, n: (400, {}, b"no")).serving() as endpoint:
        judge = LLMJudge(client_of(endpoint, tmp_path), n_per_question=2)
        assert judge.fires(ANNOTATION, PLAIN) == [None] * 8
        assert judge.fires(ANNOTATION, PLAIN) == [None] * 8
    assert len(endpoint.requests) == 3
    assert judge.n_skipped == 8
    assert "400" in judge.why_skipped


def test_a_judge_asks_nothing_more_after_a_refused_key(tmp_path):
    with FakeEndpoint(lambda request, n: (401, {}, b"no")).serving() as endpoint:
        judge = LLMJudge(client_of(endpoint, tmp_path), n_per_question=2)
        assert judge.fires(ANNOTATION, PLAIN) == [None] * 8
    assert len(endpoint.requests) == 1


def test_failures_of_a_judge_that_do_not_follow_each_other_do_not_stop_it(tmp_path):
    flags = completion("[1, 0]")
    with FakeEndpoint(lambda request, n: (400, {}, b"") if n % 3 else flags).serving() as endpoint:
        judge = LLMJudge(client_of(endpoint, tmp_path), n_per_question=2)
        found = judge.fires(ANNOTATION, OTHERS)
    assert found == [None] * 4 + [True, False] + [None] * 4 + [True, False]
    assert judge.n_skipped == 4


def truthful(request: dict, n: int) -> tuple:
    """Says 1 where "Wait" occurs, and for marked snippets where it is marked."""
    lines = request["messages"][1]["content"].splitlines()
    word = "[[ Wait]]" if any("[[" in line for line in lines) else "Wait"
    return completion(json.dumps([int(word in line) for line in lines]))


def test_a_judge_that_knows_scores_one_and_a_contrary_one_zero(tmp_path, generator):
    fires = [snippet("it is 4 . Wait , check that", at=4, row=row) for row in range(12)]
    with FakeEndpoint(truthful).serving() as endpoint:
        judge = LLMJudge(client_of(endpoint, tmp_path), n_per_question=5)
        detection = detection_score(
            judge, ANNOTATION, activating=fires, non_activating=PLAIN, generator=generator
        )
        fuzzing = fuzzing_score(judge, ANNOTATION, activating=fires, generator=generator)
        contrary = detection_score(
            judge, ANNOTATION, activating=PLAIN, non_activating=fires, generator=generator
        )
    assert (detection.value, detection.n_true, detection.n_false) == (1.0, 12, 8)
    assert (fuzzing.value, fuzzing.n_true, fuzzing.n_false) == (1.0, 12, 12)
    assert contrary.value == 0.0


def test_a_list_of_the_wrong_length_leaves_its_snippets_unanswered(tmp_path, generator):
    with FakeEndpoint(lambda request, n: completion("[1, 0]")).serving() as endpoint:
        judge = LLMJudge(client_of(endpoint, tmp_path), n_per_question=6)
        score = detection_score(
            judge, ANNOTATION, activating=WAITS, non_activating=PLAIN[:4], generator=generator
        )
    assert score.n_unanswered == 6  # eight snippets in questions of six and two
    assert score.n_true + score.n_false == 2


def test_the_estimate_of_scoring_counts_the_calls_that_scoring_makes(tmp_path):
    test = [
        snippet("it is 4 . Wait , check that", at=4, active={0: 1.0, 4: 2.0}, row=row) for row in range(7)
    ]
    with FakeEndpoint(truthful).serving() as endpoint:
        judge = LLMJudge(client_of(endpoint, tmp_path), n_per_question=4)
        estimate = judge.estimate([test], [PLAIN])
        generator = torch.Generator().manual_seed(0)
        detection_score(judge, ANNOTATION, activating=test, non_activating=PLAIN, generator=generator)
        fuzzing_score(judge, ANNOTATION, activating=test, generator=generator)
    assert estimate.n_calls == pytest.approx(len(endpoint.requests), abs=2)  # equal questions count once
    assert estimate.cost == 0
