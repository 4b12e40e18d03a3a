"""Steering sweeps: what is shared, what is paired, how answers are named, and resuming."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from crosscoders.interventions import AddVector
from crosscoders.interventions.sweeps.directions import (
    Direction,
    additive_direction,
    random_directions,
    unembedding_direction,
)
from crosscoders.interventions.sweeps.regimes import (
    RegimeBounds,
)
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


def run_many(model: LanguageModel, options: SweepOptions = OPTIONS) -> SweepResult:
    """Over enough prompts for regimes to be named."""
    return sweep(model, PROMPTS * 10, directions=[toy_direction()], options=options, count_categories=count)


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


def test_loops_of_some_answers_are_not_over_thinking(model: LanguageModel) -> None:
    found = run_many(model, dataclasses.replace(OPTIONS, bounds=RegimeBounds(reflection="low")))
    n, plain = found.n_prompts, found.unsteered
    is_loop = (torch.arange(n) % 5 == 0).double()
    plain = dataclasses.replace(plain, values={**plain.values, "collapsed": torch.zeros(n).double()})
    values = {
        name: value + (50 * is_loop if name in ("tokens", "count/low") else 0)
        for name, value in plain.values.items()
    }
    looping = dataclasses.replace(
        found.at("latent 4", 2.0), values={**values, "collapsed": is_loop, "accuracy": is_loop}
    )
    found = dataclasses.replace(found, unsteered=plain, steered=(looping,), strengths=(0.0, 2.0))
    assert found.difference(looping, "tokens").is_above_zero
    intact = found.difference(looping, "tokens", only_intact=True)
    assert (intact.mean, intact.n) == (0.0, n - int(is_loop.sum()))
    assert found.regime(looping) == "changed"


def test_two_settings_are_compared_prompt_by_prompt(model: LanguageModel) -> None:
    found = run_many(model)
    one, other = found.at("latent 4", -1.0), found.at("latent 4", 2.0)
    paired = one.values["tokens"] - other.values["tokens"]
    assert found.difference(one, "tokens", to=other).mean == pytest.approx(paired.mean().item())
    same = found.difference(one, "tokens", to=one)
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_a_shift_on_every_prompt_is_named_and_the_table_agrees(model: LanguageModel) -> None:
    bounds = RegimeBounds(reflection="low", coherence_margin=100.0)
    found = run_many(model, dataclasses.replace(OPTIONS, bounds=bounds))
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
    assert (row["regime"], row["kind"], row["n_prompts"]) == ("over-thinking", "latent", 40)
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


def test_a_model_that_differs_on_the_second_prompt_only_is_another(
    model: LanguageModel, tmp_path: Path
) -> None:
    embedding = model.causal_lm.get_input_embeddings()
    embedding.weight = torch.nn.Parameter(embedding.weight.clone())  # no longer that of the logits
    run(model, cache=tmp_path)
    with torch.no_grad():
        model.causal_lm.get_input_embeddings().weight[9].mul_(2)  # a token of the second and third prompt
    run(model, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 6


def test_a_cache_refuses_a_model_that_something_acts_on(model: LanguageModel, tmp_path: Path) -> None:
    late = AddVector(torch.ones(16), hook_name=HOOK, from_position=20)  # never acts on a prompt
    with late.on(model), pytest.raises(ValueError, match=r"'toy' has hooks on .*layers\.1"):
        run(model, cache=tmp_path)
    handle = model.causal_lm.base_model.layers[0].mlp.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"hooks on .*layers\.0\.mlp"):
        run(model, cache=tmp_path)
    handle.remove()
    assert not list(tmp_path.iterdir())
    with late.on(model):
        run(model)  # without a cache it is fine
    run(model, cache=tmp_path)


def test_a_cache_lives_with_a_bridge_but_not_with_its_edits(model: LanguageModel, tmp_path: Path) -> None:
    bridged = LanguageModel(name="bridged", bridge=model.bridge, tokenizer=model.tokenizer)
    with AddVector(torch.ones(16), hook_name=HOOK).on(bridged), pytest.raises(ValueError, match="has hooks"):
        run(bridged, cache=tmp_path)
    run(bridged, cache=tmp_path)  # the bridge leaves hooks of its own after an edit
    assert len(list(tmp_path.iterdir())) == 3


def test_two_directions_of_one_key_are_refused_by_a_cache(model: LanguageModel, tmp_path: Path) -> None:
    twin = dataclasses.replace(toy_direction(seed=1), name="twin", key=toy_direction().key)
    with pytest.raises(ValueError, match=r"'latent 4' and 'twin' have the same key"):
        run(model, directions=[toy_direction(), twin], cache=tmp_path)
    run(model, directions=[toy_direction(), twin])


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
