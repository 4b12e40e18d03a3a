"""Batched generation."""

import pytest
import torch
from transformers import Qwen2ForCausalLM

from crosscoders.models import LanguageModel, generate, load_model
from tests.data.toy_models import random_tokens, toy_gpt2

PROMPTS = [random_tokens(n, seed=n).tolist() for n in (3, 7, 1, 5, 7, 4)]


def test_greedy_equals_hugging_face_generate(model: LanguageModel, hf_model: Qwen2ForCausalLM) -> None:
    answers = generate(model, PROMPTS, max_new_tokens=12, stop_ids=())
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        full = hf_model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert answer == full[0, len(prompt) :].tolist()


def test_greedy_does_not_depend_on_the_rest_of_the_batch(model: LanguageModel) -> None:
    together = generate(model, PROMPTS, max_new_tokens=12, stop_ids=())
    assert together == generate(model, PROMPTS, max_new_tokens=12, stop_ids=(), batch_size=2)
    assert together == [generate(model, [prompt], max_new_tokens=12, stop_ids=())[0] for prompt in PROMPTS]
    assert together[::-1] == generate(model, PROMPTS[::-1], max_new_tokens=12, stop_ids=())


def test_answers_end_at_their_stop_id_while_other_rows_go_on(model: LanguageModel) -> None:
    free = generate(model, PROMPTS, max_new_tokens=20, stop_ids=())
    stop_ids = {free[0][2], free[1][5], free[3][9]}
    stopped = generate(model, PROMPTS, max_new_tokens=20, stop_ids=stop_ids)
    assert len({len(answer) for answer in stopped}) > 2
    for whole, answer in zip(free, stopped, strict=True):
        ends = [i for i, token in enumerate(whole) if token in stop_ids]
        assert answer == whole[: ends[0] + 1 if ends else 20]


def test_sampling_is_a_function_of_the_generator(model: LanguageModel) -> None:
    def sample(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return generate(
            model, PROMPTS, max_new_tokens=12, stop_ids=(4, 5, 6), temperature=1.0, generator=generator
        )

    assert sample(0) == sample(0)
    assert sample(0) != sample(1)


def test_sampling_follows_the_models_distribution(model: LanguageModel) -> None:
    generator, prompt = torch.Generator().manual_seed(0), PROMPTS[1]
    drawn = generate(
        model,
        [prompt] * 4000,
        max_new_tokens=1,
        stop_ids=(),
        temperature=2.0,
        generator=generator,
        batch_size=4000,
    )
    counts = torch.bincount(torch.tensor(drawn)[:, 0], minlength=40) / 4000
    expected = (model.logits(torch.tensor([prompt]))[0, -1] / 2.0).softmax(dim=-1)
    assert (counts - expected).abs().max() < 0.03


def test_generation_through_a_bridge_agrees(model: LanguageModel) -> None:
    bridged = load_model(model.bridge, name="bridge")
    assert generate(bridged, PROMPTS, max_new_tokens=8, stop_ids=()) == generate(
        model, PROMPTS, max_new_tokens=8, stop_ids=()
    )


def test_no_prompts_have_no_answers(model: LanguageModel) -> None:
    assert generate(model, [], max_new_tokens=2, stop_ids=()) == []


def test_unusable_requests_raise(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        generate(model, [[4], []], max_new_tokens=2, stop_ids=())
    with pytest.warns(UserWarning, match="65 tokens exceed the context"):
        generate(model, [[4] * 60], max_new_tokens=5, stop_ids=())
    with pytest.raises(ValueError, match="exceed its context of 64"):
        generate(load_model(toy_gpt2(), name="gpt2"), [[4] * 60], max_new_tokens=5, stop_ids=())
    with pytest.raises(ValueError, match="needs generator"):
        generate(model, [[4]], max_new_tokens=5, stop_ids=(), temperature=1.0)
