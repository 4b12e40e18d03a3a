"""Steering samples are what the model itself writes with the vector added, and the same every time."""

import functools
from typing import Any

import pytest
import torch

from crosscoders.activation_fns import TopK
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.harvest import ModelSources, load_sources
from crosscoders.interventions.directions import AddVector, random_vector_like
from crosscoders.models.generate import generate
from crosscoders.pipeline.bundled import bundled_sources, demo_config
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.corpus import Corpus
from crosscoders.pipeline.report.steering import steering_samples
from crosscoders.zoo.base_text import prompt
from crosscoders.zoo.measure import held_out_problems
from crosscoders.zoo.recipe import Architecture
from crosscoders.zoo.train import build_model
from crosscoders.zoo.vocabulary import END_OF_TEXT, build_tokenizer, encode, token_ids

N_LATENTS = 8
LITTLE: dict[str, Any] = {"n_prompts": 2, "max_new_tokens": 12}


@functools.cache
def bundled() -> tuple[Crosscoder, ModelSources, RunConfig]:
    """The bundled models with a crosscoder that was never trained."""
    config = demo_config("unused")
    sources = bundled_sources(config)
    return untrained(sources), sources, config


@functools.cache
def other_pair() -> tuple[Crosscoder, ModelSources, RunConfig]:
    shape = Architecture(n_layers=2, d_model=16, d_mlp=16, n_heads=2, n_kv_heads=1)
    models = {name: build_model(shape, seed=seed) for seed, name in enumerate(("base", "distilled"))}
    sources = load_sources(models, hook_name="half", tokenizer=build_tokenizer())
    config = RunConfig(
        base="a", distilled="b", text="c", out="d", n_latents=N_LATENTS, activation_fn=TopK(k=2)
    )
    return untrained(sources), sources, config


def untrained(sources: ModelSources) -> Crosscoder:
    config = CrosscoderConfig(sources=sources.sources, n_latents=N_LATENTS, activation_fn=TopK(k=2))
    return Crosscoder(config, generator=torch.Generator().manual_seed(0)).eval()


def samples(pair: Any, **changes: Any) -> dict[str, list[dict[str, Any]]]:
    crosscoder, sources, config = pair
    return steering_samples(crosscoder, sources, **{"latents": [1], "config": config, **LITTLE, **changes})


def test_each_prompt_has_one_unsteered_sample_and_two_at_each_strength() -> None:
    found = samples(bundled(), latents=[1, 4], strengths=(-0.5, 2))
    assert list(found) == ["1", "4"]
    kinds = [("none", 0.0), ("latent", -0.5), ("random", -0.5), ("latent", 2.0), ("random", 2.0)]
    asked = [f"{prompt(problem)}" for problem in held_out_problems(2, seed=0)]
    for rows in found.values():
        assert [(row["kind"], row["strength"]) for row in rows] == kinds * 2
        assert [row["prompt"] for row in rows] == [text for text in asked for _ in kinds]


def test_samples_are_what_the_distilled_model_writes_with_the_vector_at_full_stops() -> None:
    crosscoder, sources, _ = bundled()
    rows = samples(bundled(), strengths=(20.0,), max_new_tokens=30)["1"]
    source = crosscoder.sources[-1]
    row = crosscoder.steering_direction(1, source.name)
    vector = 20.0 * row / row.norm() * (source.d_model**0.5 / source.scale)
    prompts = [encode(prompt(problem)) for problem in held_out_problems(2, seed=0)]
    stop = (token_ids()["."],)
    model = sources.models["distilled"]
    control = random_vector_like(vector, generator=torch.Generator().manual_seed(0))
    for kind, added in (("latent", vector), ("random", control), ("none", 0 * vector)):
        with AddVector(added.detach(), hook_name=source.hook_name, at_tokens=stop).on(model):
            answers = generate(model, prompts, max_new_tokens=30, stop_ids=(token_ids()[END_OF_TEXT],))
        expected = [sources.tokenizer.decode(ids).removesuffix(END_OF_TEXT) for ids in answers]
        assert [row["text"] for row in rows if row["kind"] == kind] == expected
    texts = {
        kind: [row["text"] for row in rows if row["kind"] == kind] for kind in ("none", "latent", "random")
    }
    assert texts["none"] != texts["latent"] != texts["random"] != texts["none"]


def test_a_seed_fixes_everything_and_another_one_asks_something_else() -> None:
    once, again, other = (samples(bundled(), seed=seed) for seed in (0, 0, 1))
    assert once == again
    assert once["1"][0]["prompt"] != other["1"][0]["prompt"]


def test_a_latents_samples_do_not_depend_on_which_others_are_shown() -> None:
    assert samples(bundled(), latents=[4, 1])["1"] == samples(bundled())["1"]


def test_an_end_of_text_is_told_and_not_shown() -> None:
    rows = samples(bundled(), strengths=(0.01,), max_new_tokens=None)["1"]
    assert all(row["is_finished"] and "<|endoftext|>" not in row["text"] for row in rows)
    assert not any(row["is_finished"] for row in samples(bundled(), max_new_tokens=2)["1"])


def test_other_pairs_continue_the_prompts_that_they_are_given() -> None:
    rows = samples(other_pair(), prompts=["Anna saw the", "Question: What"], strengths=(1.0,))["1"]
    assert [row["prompt"] for row in rows] == ["Anna saw the"] * 3 + ["Question: What"] * 3
    assert rows[0]["text"] != rows[1]["text"]  # steered everywhere, though there is no full stop


def test_without_prompts_held_out_rows_begin() -> None:
    text = encode("Anna saw the red dog. Tom found a big box.")
    rows = torch.zeros(3, 24, dtype=torch.int64)
    rows[0, : len(text)] = torch.tensor(text)
    rows[2, :3] = torch.tensor(text[:3])
    corpus = Corpus(train=rows[:0], held_out=rows, origin=rows, exclude_token_ids=(0,))
    asked = {row["prompt"] for row in samples(other_pair(), corpus=corpus, n_prompts=5)["1"]}
    assert asked == {"Anna saw the red dog. Tom found a big box.", "Anna saw the"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": [N_LATENTS]}, r"different numbers from 0 to 7, got \[8\]"),
        ({"latents": [-1]}, "from 0 to 7"),
        ({"latents": [2, 2]}, "different numbers"),
        ({"strengths": (0.0,)}, "not 0"),
        ({"strengths": (1.0, 1.0)}, "all different"),
        ({"strengths": (float("nan"),)}, "finite"),
        ({"strengths": ()}, "strengths must be"),
        ({"n_prompts": 0}, "n_prompts must be at least 1"),
        ({}, r"got 0 prompts, 0 of them empty; pass prompts="),
        ({"prompts": ["Anna", ""]}, "got 2 prompts, 1 of them empty"),
    ],
)
def test_what_cannot_be_shown_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        samples(other_pair(), **changes)


def test_no_latents_are_no_samples() -> None:
    assert samples(other_pair(), latents=[]) == {}


def test_models_without_a_tokenizer_are_refused() -> None:
    crosscoder, sources, config = other_pair()
    bare = ModelSources(
        sources.models, hook_names={s.name: s.hook_name for s in sources.sources}, tokenizer=None
    )
    with pytest.raises(ValueError, match="have no tokenizer"):
        steering_samples(crosscoder, bare, latents=[1], config=config, prompts=["Anna"])


def test_a_latent_without_direction_is_refused() -> None:
    _, sources, config = other_pair()
    dead = untrained(sources)
    with torch.no_grad():
        dead.W_dec[1] = 0
    with pytest.raises(ValueError, match="latent 1 has decoder norm 0"):
        steering_samples(dead, sources, latents=[2, 1], config=config, prompts=["Anna"])
