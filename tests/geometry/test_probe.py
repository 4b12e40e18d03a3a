"""The probe against an independent computation, and what it does with words it cannot read."""

import math
import zlib
from typing import Any

import numpy as np
import pytest
import torch

from crosscoders.geometry.parallelogram import SCALES, draw_quadruples
from crosscoders.geometry.probe import GeometryProbe
from crosscoders.geometry.word_pairs import WordTask
from crosscoders.harvest import ModelSources, load_sources
from crosscoders.report.tables import write_csv
from tests.data.toy_models import toy_model, toy_tokenizer

QUICK: dict[str, Any] = {"n_components": 4, "n_permutations": 19, "n_resamples": 40, "n_quadruples": 300}
NEXT = WordTask(name="next", pairs=tuple((f"w{i}", f"w{i + 1}") for i in range(4, 12)))
TWICE = WordTask(name="twice", pairs=tuple((f"w{i} w9", f"w9 w{2 * i}") for i in range(5, 15)))


@pytest.fixture(scope="module")
def sources() -> ModelSources:
    models = {"base": toy_model(), "distilled": toy_model(seed=1)}
    return load_sources(models, tokenizer=toy_tokenizer())


def word_vector(sources: ModelSources, source: str, words: str) -> np.ndarray:
    ids = torch.tensor([[int(word[1:]) for word in words.split()]])  # the toy's id is the word's number
    with torch.no_grad():
        states = sources.models[source].causal_lm(ids, output_hidden_states=True).hidden_states
    return states[1][0, -1].double().numpy()


def project(vectors: np.ndarray, fitted_on: np.ndarray, n_components: int) -> np.ndarray:
    covariance = np.cov(fitted_on, rowvar=False)
    axes = np.linalg.eigh(covariance)[1][:, ::-1][:, :n_components]
    return (vectors - fitted_on.mean(axis=0)) @ axes


def expected_loss(sources: ModelSources, task: WordTask, tasks: list[WordTask], *, scale: str, pca: str):
    """Mean loss of one task in "distilled", in numpy, by loops over the same quadruples."""

    def vectors(of: list[WordTask]) -> np.ndarray:
        words = sorted({word for t in of for pair in t.pairs for word in pair})
        return np.stack([word_vector(sources, "distilled", word) for word in words])

    fitted_on = vectors(tasks if pca == "pooled" else [task])
    pairs = np.stack([[word_vector(sources, "distilled", word) for word in pair] for pair in task.pairs])
    points = project(pairs, fitted_on, 4)
    vocabulary = project(vectors(tasks), fitted_on, 4)
    own = (points**2).sum(-1).mean()
    generator = torch.Generator().manual_seed(zlib.crc32(f"0/quadruples/{task.name}".encode()))
    losses = []
    for i, j in draw_quadruples(len(points), n_quadruples=300, generator=generator).tolist():
        e0, e1, e2, e3 = four = np.stack([*points[i], *points[j]])
        size = {
            "all": (vocabulary**2).sum(-1).mean(),
            "task": own,
            "dp": (four**2).mean(),
            "dp_0m": ((four - four.mean(axis=0)) ** 2).mean(),
        }[scale]
        losses.append(np.sum((e0 + e3 - e1 - e2) ** 2) / size)
    return np.mean(losses)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("pca", ["pooled", "task"])
def test_loss_agrees_with_an_independent_computation(sources, scale, pca) -> None:
    probe = GeometryProbe(sources, scale=scale, pca=pca, batch_words=7, **QUICK)
    result = probe.parallelogram([NEXT, TWICE])
    for task in (NEXT, TWICE):
        expected = expected_loss(sources, task, [NEXT, TWICE], scale=scale, pca=pca)
        score = result.score(task.name, "distilled")
        assert score.loss == pytest.approx(expected, rel=1e-6)
        assert score.low < score.high
        assert score.scale == scale
    assert result.score("next", "base").n_words == 9


def test_a_model_does_not_differ_from_itself_but_from_another(sources) -> None:
    base, other = sources.models["base"], sources.models["distilled"]
    three = load_sources({"base": base, "same": base, "other": other}, tokenizer=toy_tokenizer())
    result = GeometryProbe(three, **QUICK).parallelogram(NEXT)
    same, differing = (result.difference(name, "base") for name in ("same", "other"))
    assert [(d.estimate, d.low, d.high, d.p_value) for d in same.tasks] == [(0, 0, 0, 1)]
    losses = [result.score("next", name).loss for name in ("other", "base")]
    assert differing.tasks[0].estimate == losses[0] - losses[1]
    assert differing.tasks[0].low < differing.tasks[0].high
    opposite = result.difference("base", "other").tasks[0]
    assert opposite.low == pytest.approx(-differing.tasks[0].high)
    assert "other minus base" in str(differing)


def test_relative_losses_are_divided_by_their_own_null(sources) -> None:
    result = GeometryProbe(sources, **QUICK).parallelogram(NEXT)
    scores = [result.score("next", name) for name in ("distilled", "base")]
    found = result.difference("distilled", "base", relative=True).tasks[0]
    assert found.estimate == pytest.approx(scores[0].relative - scores[1].relative)
    assert scores[0].relative == scores[0].loss / scores[0].null_mean
    samples = [result.resampled["next", s.source].numpy() / s.null_mean for s in scores]
    assert (found.low, found.high) == pytest.approx(np.quantile(samples[0] - samples[1], [0.025, 0.975]))


def test_unknown_words_are_dropped_and_counted_or_raise(sources) -> None:
    task = WordTask(name="some", pairs=(("w5", "zebra"), *NEXT.pairs, ("zebra", "yak")))
    hopeless = WordTask(name="none", pairs=(("w5", "w6"), ("a", "b")))
    probe = GeometryProbe(sources, **QUICK)
    result = probe.parallelogram([task, hopeless])
    score = result.score("some", "base")
    assert (score.n_pairs, score.n_unknown, score.n_dropped_pairs) == (8, 2, 2)
    assert list(result.skipped) == ["none"]
    assert result.skipped["none"].endswith("has 1 of 2 pairs with known words; unknown words: ['a', 'b']")
    with pytest.raises(ValueError, match=r"task 'some' has 8 of 10 .*\['yak', 'zebra'\]"):
        probe.parallelogram(task, strict=True)
    with pytest.raises(ValueError, match="no task has 2 pairs of known words: task 'none' has 1 of 2"):
        probe.parallelogram(hopeless)
    with pytest.raises(ValueError, match=r"no score of task 'none' .*skipped: \['none'\]"):
        result.score("none", "base")


def test_a_prefix_stands_before_every_word(sources) -> None:
    bare = GeometryProbe(sources, **QUICK).read({"t": [(f"w9 {a}", f"w9 {b}") for a, b in NEXT.pairs]})
    prefixed = GeometryProbe(sources, prefix="w9 ", **QUICK).read({"t": list(NEXT.pairs)})
    for name in ("base", "distilled"):
        torch.testing.assert_close(bare.vectors[name], prefixed.vectors[name])
    unknown = GeometryProbe(sources, prefix="<unk> ", **QUICK).read({"t": [*NEXT.pairs, ("zebra", "w5")]})
    assert (len(unknown.tasks[0].pairs), unknown.tasks[0].n_unknown) == (8, 1)


def test_pairs_come_as_tasks_a_mapping_or_bare(sources) -> None:
    probe = GeometryProbe(sources, **QUICK)
    results = [probe.parallelogram(words) for words in (NEXT, [NEXT], {"next": NEXT.pairs}, probe.read(NEXT))]
    assert all(result.scores == results[0].scores for result in results)
    assert probe.parallelogram(list(NEXT.pairs)).tasks == ("pairs",)
    with pytest.raises(ValueError, match="a name of its own"):
        probe.parallelogram([NEXT, NEXT])


def test_a_task_does_not_depend_on_the_randomness_of_others(sources) -> None:
    probe = GeometryProbe(sources, pca="task", **QUICK)
    alone, beside = probe.parallelogram(NEXT), probe.parallelogram([TWICE, NEXT])
    for name in ("base", "distilled"):
        first, second = alone.score("next", name), beside.score("next", name)
        assert first.loss == pytest.approx(second.loss)
        assert (first.p_value, first.n_trivial) == (second.p_value, second.n_trivial)


def test_models_of_unequal_width_are_compared() -> None:
    models = {"base": toy_model(), "distilled": toy_model(d_model=32, n_layers=2)}
    probe = GeometryProbe(load_sources(models, tokenizer=toy_tokenizer()), **QUICK)
    difference = probe.parallelogram(NEXT).difference("distilled", "base")
    assert math.isfinite(difference.tasks[0].estimate)


def test_few_pairs_have_no_interval_and_all_trivial_ones_raise(sources) -> None:
    probe = GeometryProbe(sources, **QUICK)
    few = WordTask(name="few", pairs=NEXT.pairs[:4])
    score = probe.parallelogram([few, TWICE]).score("few", "base")
    assert math.isnan(score.low)
    assert score.loss > 0
    same = WordTask(name="same", pairs=tuple((f"w{i}", f"w{i}") for i in range(4, 20)))
    with pytest.raises(ValueError, match="task 'same': all 300 quadruples of its 16 pairs are trivial"):
        probe.parallelogram(same)
    assert list(probe.parallelogram([same, TWICE]).skipped) == ["same"]


def test_trivial_quadruples_are_counted_in_observed_and_null(sources) -> None:
    task = WordTask(name="some", pairs=(*NEXT.pairs, ("w20", "w20"), ("w21", "w21"), ("w22", "w22")))
    score = GeometryProbe(sources, **QUICK).parallelogram(task).score("some", "base")
    assert score.n_trivial > 0
    assert score.n_quadruples + score.n_trivial + score.n_degenerate == 300
    assert 0 < score.null_dropped_share < score.n_trivial / 300


def test_too_few_words_or_too_many_components_raise(sources) -> None:
    few = WordTask(name="few", pairs=NEXT.pairs[:3])
    with pytest.raises(ValueError, match=r"source 'base', all tasks: 4 principal .* got 4"):
        GeometryProbe(sources, **QUICK).parallelogram(few)
    with pytest.raises(ValueError, match=r"source 'base', task 'few': 4 principal .* got 4"):
        GeometryProbe(sources, pca="task", **QUICK).parallelogram([few, NEXT])
    with pytest.raises(ValueError, match="n_components=17 exceeds the width 16"):
        GeometryProbe(sources, n_components=17)
    with pytest.raises(ValueError, match="at least 1"):
        GeometryProbe(sources, n_resamples=0)
    with pytest.raises(ValueError, match="without a tokenizer"):
        GeometryProbe(load_sources({"base": toy_model()}), **QUICK).parallelogram(NEXT)


def test_rows_go_into_a_table(sources, tmp_path) -> None:
    result = GeometryProbe(sources, **QUICK).parallelogram([NEXT, TWICE])
    write_csv(tmp_path / "scores.csv", result.to_rows())
    write_csv(tmp_path / "difference.csv", result.difference("distilled", "base").to_rows())
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 5
    assert "next" in str(result)
