"""Steering sweeps: what is shared, what is paired, how answers are named, and resuming."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from crosscoders.bootstrap import Estimate, bootstrap_counts, bootstrap_mean
from crosscoders.interventions import AddVector
from crosscoders.interventions.sweeps.directions import (
    Direction,
    additive_direction,
    random_directions,
    unembedding_direction,
)
from crosscoders.interventions.sweeps.regimes import RegimeBounds, collapsed, name_regime
from crosscoders.interventions.sweeps.result import SweepResult
from crosscoders.interventions.sweeps.sweep import SweepOptions, sweep
from crosscoders.interventions.sweeps.text_measures import mean_log_probability
from crosscoders.models import LanguageModel, generate

HOOK = "blocks.1.hook_resid_pre"
PROMPTS = [[5, 6, 7, 8], [3, 9], [9, 3, 4, 10, 11, 12], [10]]
OPTIONS = SweepOptions(
    strengths=(-1.0, 0.0, 2.0), max_new_tokens=12, stop_ids=(1, 4), seed=3, n_bootstrap=50, keep_answers=None
)


def toy_direction(name: str = "latent 4", *, seed: int = 0) -> Direction:
    vector = 3 * torch.randn(16, generator=torch.Generator().manual_seed(seed))
    return additive_direction(vector, name=name, kind="latent", hook_name=HOOK)


def count(ids: Sequence[int]) -> dict[str, int]:
    return {"low": sum(i < 20 for i in ids), "high": sum(i >= 20 for i in ids)}


def run(model: LanguageModel, options: SweepOptions = OPTIONS, **kwargs) -> SweepResult:
    kwargs.setdefault("directions", [toy_direction()])
    return sweep(model, PROMPTS, options=options, count_categories=count, **kwargs)


def test_every_strength_answers_the_same_prompts_with_the_same_seed(model: LanguageModel) -> None:
    found, direction = run(model), toy_direction()
    for strength in OPTIONS.strengths:
        with direction.at(strength).on(model):
            answers = generate(
                model, PROMPTS, max_new_tokens=12, stop_ids=(1, 4), temperature=1.0,
                generator=torch.Generator().manual_seed(3),
            )  # fmt: skip
        got = found.at("latent 4", strength)
        assert [list(a) for a in got.answers] == answers
        assert got.values["tokens"].tolist() == [len(a) for a in answers]
        assert got.values["finished"].tolist() == [float(a[-1] in (1, 4)) for a in answers]
        assert got.values["count/high"].tolist() == [count(a)["high"] for a in answers]
        assert torch.equal(got.values["rate/low"], 100 * got.values["count/low"] / got.values["tokens"])
        assert torch.equal(got.values["coherence"], mean_log_probability(model, PROMPTS, answers))
    assert found.at("latent 4", 2.0).answers != found.unsteered.answers


def test_strength_zero_is_run_once_and_shared(model: LanguageModel) -> None:
    calls: list[float] = []

    def at(strength: float) -> AddVector:
        calls.append(strength)
        return AddVector(strength * torch.ones(16), hook_name=HOOK)

    spy = Direction(name="spy", kind="other", at=at)
    seen: list[tuple[int, int]] = []
    found = run(model, directions=[toy_direction(), spy], progress=lambda *at: seen.append(at))
    assert calls == [-1.0, 2.0]
    assert seen == [(n, 5) for n in range(1, 6)]
    assert found.at("spy", 0) is found.at("latent 4", 0.0) is found.unsteered
    without = run(model, dataclasses.replace(OPTIONS, strengths=(-1, 2)))
    assert without.strengths == (-1, 0, 2)
    assert without.unsteered.answers == found.unsteered.answers


def test_directions_leave_no_trace_and_add_their_vector(model: LanguageModel) -> None:
    tokens = torch.tensor(PROMPTS[:1])
    plain = model.logits(tokens)
    run(model)
    assert torch.equal(model.logits(tokens), plain)
    like, generator = torch.full((16,), 2.0), torch.Generator().manual_seed(1)
    controls = random_directions(like, n=3, generator=generator, hook_name=HOOK, at_tokens=(6,))
    word = unembedding_direction(model, 7, like=like, name="word", hook_name=HOOK)
    assert [d.kind for d in (*controls, word)] == ["random"] * 3 + ["unembedding"]
    assert len({d.key for d in (*controls, word, toy_direction())}) == 5
    for direction in (*controls, word):
        addition = direction.at(0.5)
        assert isinstance(addition, AddVector)
        assert float(addition.vector.norm()) == pytest.approx(4.0)
    row = model.causal_lm.get_output_embeddings().weight[7].detach()
    added = word.at(1.0)
    assert isinstance(added, AddVector)
    assert torch.cosine_similarity(added.vector, row, dim=0) == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"token 40 is outside \[0, 40\)"):
        unembedding_direction(model, 40, like=like, name="word", hook_name=HOOK)


def test_intervals_resample_prompts_and_keep_pairs_together() -> None:
    rng = np.random.default_rng(0)
    level = rng.normal(size=40) * 10
    values = torch.tensor(level + rng.normal(size=40))
    counts = bootstrap_counts(40, n_bootstrap=4000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(counts.sum(dim=1), torch.full((4000,), 40.0, dtype=torch.float64))
    draws = rng.integers(0, 40, size=(4000, 40))
    by_hand = np.quantile(values.numpy()[draws].mean(axis=1), [0.025, 0.975])
    found = bootstrap_mean(values, counts)
    assert found.mean == pytest.approx(values.mean().item())
    assert [found.low, found.high] == pytest.approx(by_hand, abs=0.25)
    paired = bootstrap_mean(values - torch.tensor(level), counts)
    assert paired.high - paired.low < 0.2 * (found.high - found.low)


def test_intervals_cover_the_true_mean_about_as_often_as_they_say() -> None:
    generator, n_covered = torch.Generator().manual_seed(0), 0
    for _ in range(300):
        values = torch.rand(60, generator=generator, dtype=torch.float64)
        counts = bootstrap_counts(60, n_bootstrap=300, generator=generator)
        found = bootstrap_mean(values, counts, confidence=0.9)
        n_covered += found.low <= 0.5 <= found.high
    assert 0.84 < n_covered / 300 < 0.95


def test_undefined_values_are_left_out_and_counted() -> None:
    counts = bootstrap_counts(3, n_bootstrap=200, generator=torch.Generator().manual_seed(0))
    some = bootstrap_mean(torch.tensor([1.0, float("nan"), 3.0]), counts)
    assert (some.mean, some.n) == (2.0, 2)
    assert np.isnan(some.low)  # one resample in 27 draws the undefined prompt alone
    none = bootstrap_mean(torch.full((3,), float("nan")), counts)
    assert none.n == 0
    assert np.isnan(none.mean)
    assert not none.is_above_zero
    assert not none.is_below_zero


def answer_values(**changed: float) -> dict[str, Tensor]:
    plain = {"loop": 0.0, "repetition": 0.1, "finished": 1.0, "coherence": -1.0}
    return {name: torch.tensor([value], dtype=torch.float64) for name, value in (plain | changed).items()}


@pytest.mark.parametrize(
    ("changed", "is_collapsed"),
    [
        ({}, False),
        ({"loop": 0.49}, False),
        ({"loop": 0.51}, True),
        ({"repetition": 0.79}, False),
        ({"repetition": 0.81}, True),
        ({"repetition": float("nan")}, False),
        ({"finished": 0.0}, False),
        ({"finished": 0.0, "repetition": 0.51}, True),
        ({"coherence": -3.2}, False),
        ({"coherence": -3.3}, True),
    ],
)
def test_an_answer_has_collapsed_by_each_rule_alone(changed: dict[str, float], is_collapsed: bool) -> None:
    unsteered = {"coherence": torch.linspace(-3.0, 0.0, 201, dtype=torch.float64)}
    bounds = RegimeBounds(coherence_percentile=0.0, coherence_margin=0.25)
    assert collapsed(answer_values(**changed), unsteered=unsteered, bounds=bounds).item() is is_collapsed


UP, DOWN, NONE = (0.5, 1.5), (-1.5, -0.5), (-0.02, 0.02)


@pytest.mark.parametrize(
    ("reflections", "tokens", "accuracy", "with_collapse", "n", "regime"),
    [
        (UP, UP, DOWN, (NONE, 0.0), 100, "over-thinking"),
        (UP, UP, DOWN, (UP, 0.2), 100, "over-thinking"),
        (UP, UP, DOWN, (UP, 0.3), 100, "collapse"),
        (UP, UP, NONE, (NONE, 0.3), 100, "over-thinking"),
        (DOWN, DOWN, NONE, (NONE, 0.0), 100, "incisive"),
        (DOWN, DOWN, NONE, (NONE, 0.0), 59, "changed"),
        (DOWN, DOWN, (-0.06, 0.02), (NONE, 0.0), 100, "changed"),
        (DOWN, DOWN, None, (NONE, 0.0), 100, "changed"),
        (DOWN, DOWN, UP, (NONE, 0.0), 100, "incisive"),
        (UP, NONE, NONE, (NONE, 0.0), 100, "changed"),
        (NONE, DOWN, NONE, (NONE, 0.0), 100, "changed"),
        (NONE, NONE, NONE, (NONE, 0.0), 100, "unchanged"),
        (None, UP, None, (NONE, 0.0), 100, "changed"),
    ],
)
def test_regimes_follow_the_rules(reflections, tokens, accuracy, with_collapse, n, regime) -> None:
    ends = {
        "count/self-reflection": reflections,
        "tokens": tokens,
        "accuracy": accuracy,
        "collapsed": with_collapse[0],
        "coherence": NONE,
    }

    def difference(measure: str, confidence: float) -> Estimate | None:
        if ends[measure] is None:
            return None
        low, high = ends[measure]
        return Estimate(mean=(low + high) / 2, low=low, high=high, n=n)

    bounds = RegimeBounds()
    found = name_regime(difference, share_collapsed=with_collapse[1], confidence=0.95, bounds=bounds)
    assert found == regime


def test_a_shift_on_every_prompt_is_named_and_the_table_agrees(model: LanguageModel) -> None:
    bounds = RegimeBounds(reflection="low", coherence_margin=100.0)
    found = run(model, dataclasses.replace(OPTIONS, bounds=bounds))
    shifted = dataclasses.replace(
        found.at("latent 4", 2.0),
        values={
            name: value + (5 if name in ("tokens", "count/low") else 0)
            for name, value in found.unsteered.values.items()
        },
    )
    found = dataclasses.replace(found, steered=(shifted,), strengths=(0.0, 2.0))
    assert found.regime(shifted) == "over-thinking"
    assert found.regime(found.unsteered) == "unchanged"
    rows = found.rows()
    assert len(rows) == 2 * len(found.measures)
    row = next(r for r in rows if (r["strength"], r["measure"]) == (2.0, "tokens"))
    assert (row["difference"], row["difference_low"], row["difference_high"]) == (5, 5, 5)
    assert row["mean"] == pytest.approx(found.unsteered.values["tokens"].mean().item() + 5)
    assert (row["regime"], row["kind"], row["n_prompts"]) == ("over-thinking", "latent", 4)
    assert [estimate.mean for estimate in found.curve("latent 4", "tokens")] == pytest.approx(
        [row["mean"] - 5, row["mean"]]
    )
    with pytest.raises(KeyError, match="no answers for 'latent 5'"):
        found.at("latent 5", 2.0)
    with pytest.raises(KeyError, match="no measure 'accuracy'"):
        found.mean(shifted, "accuracy")


def test_grading_reads_text_and_leaves_prompts_without_reference_undefined(model: LanguageModel) -> None:
    asked: list[tuple[str, str]] = []

    def grade(answer: str, reference: str) -> bool:
        asked.append((answer, reference))
        return reference == "yes"

    found = run(model, grade=grade, references=["yes", None, "no", "yes"])
    accuracy = found.unsteered.values["accuracy"]
    assert accuracy.isnan().tolist() == [False, True, False, False]
    assert accuracy[[0, 2, 3]].tolist() == [1.0, 0.0, 1.0]
    assert asked[0] == (found.unsteered.texts[0], "yes")
    assert found.unsteered.texts[0].split()[0] in model.tokenizer.get_vocab()
    assert found.mean(found.unsteered, "accuracy").n == 3


def test_an_interrupted_sweep_goes_on_from_its_cache(model: LanguageModel, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise StopError

    with pytest.raises(StopError):
        run(model, cache=tmp_path, progress=stop)
    assert len(list(tmp_path.iterdir())) == 2
    whole, fresh = run(model, cache=tmp_path), run(model)
    assert len(list(tmp_path.iterdir())) == 3
    assert repr(whole.rows()) == repr(fresh.rows())  # NaN included
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    run(model, cache=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_the_cache_is_not_taken_for_another_sweep(model: LanguageModel, tmp_path: Path) -> None:
    run(model, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    run(model, cache=tmp_path, directions=[toy_direction(seed=1)])  # same name, another vector
    assert len(list(tmp_path.iterdir())) == 5
    run(model, dataclasses.replace(OPTIONS, seed=4), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 8
    with torch.no_grad():
        model.causal_lm.lm_head.weight.mul_(1.1)
    run(model, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 11
    for path in tmp_path.iterdir():
        path.write_text(json.dumps({"answers": []}))
    with pytest.raises(ValueError, match="no file of a sweep's cache"):
        run(model, cache=tmp_path)


def test_unusable_sweeps_raise(model: LanguageModel, tmp_path: Path) -> None:
    options, one = OPTIONS, toy_direction()
    with pytest.raises(ValueError, match="0 prompts and 1 directions"):
        sweep(model, [], directions=[one], options=options)
    with pytest.raises(ValueError, match=r"names of their own.*\['latent 4'\]"):
        run(model, directions=[one, toy_direction(seed=1)])
    with pytest.raises(ValueError, match="needs the reference of each prompt"):
        run(model, grade=lambda answer, reference: True)
    with pytest.raises(ValueError, match="1 references for 4 prompts"):
        run(model, references=["1"])
    with pytest.raises(ValueError, match="has no key"):
        run(model, directions=[dataclasses.replace(one, key="")], cache=tmp_path)
    with pytest.raises(ValueError, match="the same categories for every answer"):
        sweep(
            model, PROMPTS, directions=[one], options=options, count_categories=lambda ids: {str(ids[0]): 1}
        )


@pytest.mark.parametrize(
    "bad",
    [
        {"strengths": (1.0, 1.0)},
        {"strengths": (float("nan"),)},
        {"confidence": 1.0},
        {"n_bootstrap": 0},
        {"keep_answers": -1},
    ],
)
def test_unusable_options_raise(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="SweepOptions"):
        SweepOptions(**bad)


@pytest.mark.parametrize(
    "bad", [{"max_loop": 2.0}, {"coherence_percentile": 101.0}, {"coherence_margin": -1.0}]
)
def test_unusable_bounds_raise(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="RegimeBounds"):
        RegimeBounds(**bad)
