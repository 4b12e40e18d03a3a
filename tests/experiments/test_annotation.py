"""The annotation experiment on toy models: what it writes, what it says, and with an endpoint."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from crosscoders.activation_fns import TopK
from crosscoders.experiments.annotation.experiment import AnnotationOptions, annotation_experiment
from crosscoders.experiments.annotation.verdict import annotation_verdict
from crosscoders.experiments.study import Material, Study
from crosscoders.latents import LatentTable, tabulate_latents
from crosscoders.pipeline.config import DataConfig, RunConfig
from crosscoders.pipeline.corpus import Corpus
from crosscoders.reasoning import CategoryExcess
from tests.reasoning.fake_endpoint import FakeEndpoint, completion
from tests.reasoning.toy_text import END, toy_crosscoder, toy_rows, toy_sources

OPTIONS = AnnotationOptions(n_latents=5, n_matches=2, n_top=3, n_quantile=2, n_test=3, min_score=0.2)
WORDS = '[early]\nphrases = ["w5", "w6", "w7", "w8"]\n[late]\nphrases = ["w30", "w31", "w32"]\n'


def toy_study(*, roles: bool = True) -> Study:
    sources = toy_sources()
    crosscoder = toy_crosscoder(sources)
    tokens, mask = toy_rows(40)
    config = RunConfig(
        base="a",
        distilled="b",
        text="t",
        out="o",
        n_latents=24,
        activation_fn=TopK(k=2),
        data=DataConfig(sequences_per_harvest=9),
    )
    corpus = Corpus(
        train=tokens[:0], held_out=tokens, origin=torch.where(mask, 0, -1), exclude_token_ids=(END,)
    )
    role = torch.arange(tokens.shape[1]).expand_as(tokens) // 7
    material = Material(
        markers={}, prompts=(), count_categories=lambda ids: {}, stop_ids=(END,),
        roles=role if roles else None, role_names=("prompt", "thought") if roles else (),
    )  # fmt: skip
    table = tabulate_latents(crosscoder, corpus.held_out_batches(sources, config.data))
    return Study(
        config=config, crosscoder=crosscoder, sources=sources, corpus=corpus, latents=table, material=material
    )


def read_rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture
def options(tmp_path) -> AnnotationOptions:
    (tmp_path / "words.toml").write_text(WORDS)
    return dataclasses.replace(OPTIONS, lexicon=str(tmp_path / "words.toml"))


def test_the_folder_holds_both_ends_their_snippets_counts_and_figure(tmp_path, options):
    study, folder = toy_study(), tmp_path / "out"
    folder.mkdir()
    finding = annotation_experiment(study, options, folder=folder)
    rows = read_rows(folder / "annotation.csv")
    nrn = study.latents["nrn_l1"]
    assert [row["end"] for row in rows] == ["top"] * 5 + ["bottom"] * 5
    assert float(rows[0]["nrn_l1"]) == pytest.approx(float(nrn[study.latents["frequency"] > 0].max()))
    for row in rows:
        shares = [float(row[f"share/{name}"]) for name in ("prompt", "thought")]
        assert sum(shares) == pytest.approx(1.0)
    snippets = [json.loads(line) for line in (folder / "snippets.jsonl").read_text().splitlines()]
    assert {s["latent"] for s in snippets} == {int(row["latent"]) for row in rows}
    assert {name + suffix for name in finding.figures for suffix in (".png", ".svg")} | {
        *finding.tables,
        "snippets.jsonl",
    } == {path.name for path in folder.iterdir()}


def test_the_counts_are_those_of_the_table(tmp_path, options):
    annotation_experiment(toy_study(), options, folder=tmp_path)
    rows, counts = read_rows(tmp_path / "annotation.csv"), read_rows(tmp_path / "categories.csv")
    assert {c["category"] for c in counts} == {"any", "early", "late"}
    for count in counts:
        named = [row["lexical"] for row in rows if row["end"] == count["end"] and row["lexical"]]
        of_it = [name for name in named if count["category"] in ("any", name)]
        assert int(count["found"]) == len(of_it)


def test_the_same_seed_gives_the_same_tables(tmp_path, options):
    study = toy_study()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        annotation_experiment(study, options, folder=tmp_path / name)
    for file in ("annotation.csv", "categories.csv", "snippets.jsonl", "annotation.svg"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_labels_are_used_where_the_table_has_them(tmp_path, options):
    study = toy_study(roles=False)
    scores = torch.linspace(0, 1, len(study.latents), dtype=torch.float64)
    columns = {**study.latents.columns, "auroc/function/deductive/So": scores}
    study = dataclasses.replace(study, latents=LatentTable(columns, study.latents.n_tokens))
    finding = annotation_experiment(study, options, folder=tmp_path)
    for row in read_rows(tmp_path / "annotation.csv"):
        assert (row["label"] == "deductive") == (float(scores[int(row["latent"])]) >= 0.8)
    assert "by labels" in finding.verdict
    counted = {(c["annotator"], c["category"]) for c in read_rows(tmp_path / "categories.csv")}
    assert counted == {("lexical", name) for name in ("any", "early", "late")} | {
        ("label", name) for name in ("any", "deductive")
    }


def answer(request: dict, n: int) -> tuple:
    system = request["messages"][0]["content"]
    if "look at snippets" in system:
        return completion('{"explanation": "words", "category": "none"}')
    return completion(json.dumps([n % 2 for _ in request["messages"][1]["content"].splitlines()]))


def test_an_endpoint_annotates_is_scored_and_is_not_asked_twice(tmp_path, options):
    study = toy_study()
    with FakeEndpoint(answer).serving() as endpoint:
        asked = {"base_url": endpoint.url, "model": "fake"}
        options = dataclasses.replace(options, endpoint=asked)
        n_asked = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            finding = annotation_experiment(study, options, folder=tmp_path / name)
            n_asked.append(len(endpoint.requests))
    assert n_asked[0] == n_asked[1] > 10
    rows = read_rows(tmp_path / "two" / "annotation.csv")
    assert all(row["llm_explanation"] == "words" and row["llm"] == "" for row in rows)
    assert any(0 <= float(row["llm_detection"] or math.nan) <= 1 for row in rows)
    assert any("n_calls=0" in line for line in finding.lines)


@pytest.mark.parametrize(
    ("change", "said"), [({"price_per_million_output": 1e6}, "max_cost"), ({"max_calls": 3}, "max_calls")]
)
def test_nothing_is_asked_that_would_take_too_much(tmp_path, options, change, said):
    with FakeEndpoint(answer).serving() as endpoint:
        asked = {"base_url": endpoint.url, "model": "fake", **change}
        finding = annotation_experiment(
            toy_study(), dataclasses.replace(options, endpoint=asked), folder=tmp_path
        )
    assert endpoint.requests == []
    assert "10 latents not annotated: endpoint not asked" in finding.verdict
    assert said in finding.verdict
    assert not finding.is_complete
    assert all(row["llm"] == "" for row in read_rows(tmp_path / "annotation.csv"))


def test_what_asking_takes_is_logged_first_and_whether_there_is_a_price(tmp_path, options, caplog):
    asked = {"base_url": "http://localhost", "model": "fake", "max_calls": 1}
    with caplog.at_level("INFO"):
        annotation_experiment(toy_study(), dataclasses.replace(options, endpoint=asked), folder=tmp_path)
    assert "no price given" in caplog.text


def test_a_partial_failure_is_said_and_a_second_run_pays_only_for_the_rest(tmp_path, options):
    def sometimes(request: dict, n: int) -> tuple:
        return (422, {}, b"no") if n in (2, 5, 14) else answer(request, n)

    study, said = toy_study(), []
    with FakeEndpoint(sometimes).serving() as endpoint:
        options = dataclasses.replace(options, endpoint={"base_url": endpoint.url, "model": "fake"})
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            said.append(annotation_experiment(study, options, folder=tmp_path / name))
    assert "2 latents not annotated: endpoint" in said[0].verdict
    assert "1 questions" in said[0].verdict
    assert [finding.is_complete for finding in said] == [False, True]
    asked = [json.dumps(request["messages"]) for request in endpoint.requests]
    assert len(asked) - len(set(asked)) == 3
    left = [row["llm_explanation"] for row in read_rows(tmp_path / "one" / "annotation.csv")]
    assert left.count("") == 2


def test_an_endpoint_that_is_gone_leaves_what_words_say(tmp_path, options):
    with FakeEndpoint(lambda request, n: (401, {}, b"no")).serving() as endpoint:
        asked = {"base_url": endpoint.url, "model": "fake"}
        finding = annotation_experiment(
            toy_study(), dataclasses.replace(options, endpoint=asked), folder=tmp_path
        )
    assert len(endpoint.requests) == 1
    assert "10 latents not annotated: endpoint" in finding.verdict
    assert any("skipped: 10" in line for line in finding.lines)
    assert not finding.is_complete
    assert {path.name for path in tmp_path.iterdir()} > {"annotation.csv", "categories.csv", "annotation.png"}


def test_an_endpoint_that_cannot_be_meant_is_refused_before_anything_and_shows_no_value(tmp_path, options):
    for change in ({"api_key": "sk-secret"}, {"api_key_env": ["sk-secret"]}, {"api_key_env": "sk-secret"}):
        with pytest.raises(ValueError, match=next(iter(change))) as caught:
            AnnotationOptions(endpoint={"base_url": "http://x", "model": "m", **change})
        assert "sk-secret" not in str(caught.value)


def test_a_missing_key_is_said_before_any_work(tmp_path, options, monkeypatch):
    monkeypatch.delenv("FAKE_KEY", raising=False)
    asked = {"base_url": "http://localhost", "model": "fake", "api_key_env": "FAKE_KEY"}
    with pytest.raises(ValueError, match="FAKE_KEY"):
        annotation_experiment(toy_study(), dataclasses.replace(options, endpoint=asked), folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["words.toml"]


def test_the_lexicon_of_the_material_is_used_unless_the_options_name_one(tmp_path, options):
    study = toy_study()
    material = dataclasses.replace(study.material, lexicon=options.lexicon)
    with FakeEndpoint(answer).serving() as endpoint:
        asked = {"base_url": endpoint.url, "model": "fake"}
        annotation_experiment(
            dataclasses.replace(study, material=material),
            dataclasses.replace(OPTIONS, endpoint=asked),
            folder=tmp_path,
        )
    assert {c["category"] for c in read_rows(tmp_path / "categories.csv")} == {"any", "early", "late"}
    asked_first = endpoint.requests[0]["messages"][0]["content"]
    assert "- early: as with 'w5', 'w6', 'w7', 'w8'" in asked_first
    assert "self-reflection" not in asked_first


def excess(verdict: str) -> list[CategoryExcess]:
    p = {"more": (0.01, 1.0), "fewer": (1.0, 0.01), "as many": (0.5, 0.5)}[verdict]
    return [
        CategoryExcess(
            category="any", n=9, found=3, expected=2.0, low=1.0, high=4.0, p_more=p[0], p_fewer=p[1]
        )
    ]


@pytest.mark.parametrize(
    ("top", "bottom", "said"),
    [
        (
            "more",
            "as many",
            "holds more of them than its frequencies explain by words; the base end does not",
        ),
        ("more", "more", "explain by words; the base end holds more of them by words"),
        ("as many", "as many", "no more of them than its frequencies explain; neither does the base end"),
        ("fewer", "more", "no more of them than its frequencies explain; the base end holds more"),
    ],
)
def test_the_verdict_comes_out_either_way(top, bottom, said):
    counts = {"lexical": {"top": excess(top), "bottom": excess(bottom)}}
    assert said in annotation_verdict(counts, {"top": "distilled", "bottom": "base"})


@pytest.mark.parametrize("change", [{"norm": "l3"}, {"n_latents": 0}, {"n_quantile": -1}])
def test_options_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        AnnotationOptions(**change)


def test_a_study_without_a_tokenizer_is_refused(tmp_path):
    study = toy_study()
    study.sources.tokenizer = None
    with pytest.raises(ValueError, match="tokenizer"):
        annotation_experiment(study, OPTIONS, folder=tmp_path)
