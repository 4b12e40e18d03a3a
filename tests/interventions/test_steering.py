"""Adding directions to a running model."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import Qwen2ForCausalLM

from crosscoders.crosscoder import Crosscoder
from crosscoders.interventions import AddVector, SteeringHook, random_vector_like
from crosscoders.models import LanguageModel, generate, load_model
from tests.data.toy_models import random_tokens, toy_model, toy_tokenizer

HOOKS = {"base": "blocks.1.hook_resid_pre", "distilled": "blocks.1.hook_resid_post"}
MARKER = 3
PROMPTS = [[5, 6, 7, 8], [3, 9], [9, 3, 4, 10, 11, 12], [10]]


def hook_count(module: nn.Module) -> int:
    return sum(len(child._forward_hooks) + len(child._forward_pre_hooks) for child in module.modules())


def manual_greedy(
    model: LanguageModel,
    prompt: list[int],
    *,
    hook_name: str,
    change: Callable[[Tensor, list[int]], Tensor],
    n: int,
) -> list[int]:
    """Greedy decoding without cache or padding, the stream changed by hand at every step."""
    tokens = list(prompt)
    for _ in range(n):
        with model.edit(hook_name, lambda stream: change(stream, tokens)):
            tokens.append(int(model.logits(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


def add_after_marker(vector: Tensor) -> Callable[[Tensor, list[int]], Tensor]:
    def change(stream: Tensor, tokens: list[int]) -> Tensor:
        first = tokens.index(MARKER) if MARKER in tokens else len(tokens)
        return stream + vector * (torch.arange(len(tokens)) > first)[None, :, None]

    return change


@pytest.mark.parametrize("source", ["base", "distilled"])
@pytest.mark.parametrize("kind", ["language model", "hugging face", "bridge"])
def test_steering_adds_strength_times_mean_norm_times_unit_direction(
    model: LanguageModel, crosscoder: Crosscoder, source: str, kind: str
) -> None:
    target = {"language model": model, "hugging face": model.hf_model, "bridge": model.bridge}[kind]
    read = load_model(target, name="read") if kind != "language model" else model
    tokens = random_tokens(2, 6)
    clean = read.capture(tokens, [HOOKS[source]])[HOOKS[source]]
    scale = {"base": 2.0, "distilled": 0.25}[source]
    row = crosscoder.decoder(source)[7].detach()
    expected = 0.6 * (math.sqrt(16) / scale) * row / row.norm()
    hook = SteeringHook(crosscoder, {7: 0.6}, source=source)
    with hook.on(target):
        steered = read.capture(tokens, [HOOKS[source]])[HOOKS[source]]
        assert (
            read.logits(tokens)[:, 0] - load_model(toy_model(), name="clean").logits(tokens)[:, 0]
        ).abs().max() > 0.01
    assert_close(hook.vector, expected)
    assert torch.equal(steered, clean + hook.vector)
    assert torch.equal(read.capture(tokens, [HOOKS[source]])[HOOKS[source]], clean)


def test_units_name_what_strength_one_means(crosscoder: Crosscoder) -> None:
    row = crosscoder.decoder("distilled")[3].detach() / 0.25
    raw = SteeringHook(crosscoder, {3: -2}, source="distilled", unit="raw").vector
    assert_close(raw, -2 * row / row.norm())
    most = SteeringHook(
        crosscoder, {3: 0.5}, source="distilled", unit="max_activation", max_activations={3: 8.0}
    )
    assert_close(most.vector, 4.0 * row)
    folded = SteeringHook(crosscoder.fold(), {3: 1.0}, source="distilled").vector
    assert_close(folded, SteeringHook(crosscoder, {3: 1.0}, source="distilled").vector)


def test_latents_of_one_hook_and_several_hooks_add_up_in_any_order(
    model: LanguageModel, crosscoder: Crosscoder
) -> None:
    tokens = random_tokens(2, 6)
    both = SteeringHook(crosscoder, {2: 0.5, 9: -1.0}, source="distilled")
    first, second = (SteeringHook(crosscoder, {i: c}, source="distilled") for i, c in ((2, 0.5), (9, -1.0)))
    with both.on(model):
        expected = model.logits(tokens)
    for outer, inner in ((first, second), (second, first)):
        with outer.on(model), inner.on(model.hf_model):
            assert_close(model.logits(tokens), expected, rtol=1e-4, atol=2e-5)


def test_steering_acts_inside_hugging_face_generate_with_a_cache(
    model: LanguageModel, hf_model: Qwen2ForCausalLM, crosscoder: Crosscoder
) -> None:
    hook = SteeringHook(crosscoder, {4: 1.5}, source="distilled")
    longest = max(map(len, PROMPTS))
    padded = torch.tensor([[0] * (longest - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in PROMPTS])
    with hook.on(hf_model):
        out = hf_model.generate(
            padded, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    by_hand = [
        manual_greedy(model, p, hook_name=HOOKS["distilled"], change=lambda s, _: s + hook.vector, n=8)
        for p in PROMPTS
    ]
    plain = [
        manual_greedy(model, p, hook_name=HOOKS["distilled"], change=lambda s, _: s, n=8) for p in PROMPTS
    ]
    assert out[:, longest:].tolist() == by_hand != plain


@pytest.mark.parametrize(
    "kind", ["own loop", "own loop through a bridge", "hugging face", "hugging face without cache"]
)
def test_after_a_marker_means_strictly_after_it_in_each_row(
    model: LanguageModel, hf_model: Qwen2ForCausalLM, crosscoder: Crosscoder, kind: str
) -> None:
    hook = SteeringHook(crosscoder, {4: 1.5}, source="base", after="<think>" if "own" in kind else MARKER)
    by_hand = [
        manual_greedy(model, p, hook_name=HOOKS["base"], change=add_after_marker(hook.vector), n=12)
        for p in PROMPTS
    ]
    plain = generate(model, PROMPTS, max_new_tokens=12, stop_ids=())
    if kind == "own loop":
        with hook.on(model):
            answers = generate(model, PROMPTS, max_new_tokens=12, stop_ids=())
    elif kind == "own loop through a bridge":
        bridged = load_model(model.bridge, name="bridge", tokenizer=toy_tokenizer())
        with hook.on(bridged):
            answers = generate(bridged, PROMPTS, max_new_tokens=12, stop_ids=())
    else:
        answers = []
        for prompt in PROMPTS:
            with hook.on(hf_model):
                out = hf_model.generate(
                    torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=12,
                    do_sample=False, eos_token_id=None, pad_token_id=0, use_cache="without" not in kind,
                )  # fmt: skip
            answers.append(out[0, len(prompt) :].tolist())
    assert answers == by_hand
    assert [a != p for a, p in zip(answers, plain)][1:3] == [True, True]  # the two rows with a marker


def test_padding_is_no_marker_even_if_it_has_its_id(model: LanguageModel, crosscoder: Crosscoder) -> None:
    with SteeringHook(crosscoder, {4: 3.0}, source="base", after=0).on(model):
        together = generate(model, PROMPTS, max_new_tokens=6, stop_ids=())
        alone = [generate(model, [prompt], max_new_tokens=6, stop_ids=())[0] for prompt in PROMPTS]
    assert together == alone


def test_rows_that_stop_do_not_shift_the_marker_of_the_others(
    model: LanguageModel, crosscoder: Crosscoder
) -> None:
    hook = SteeringHook(crosscoder, {4: 1.5}, source="base", after=MARKER)
    with hook.on(model):
        free = generate(model, PROMPTS, max_new_tokens=20, stop_ids=())
        stop_ids = {free[0][1], free[3][2]}
        stopped = generate(model, PROMPTS, max_new_tokens=20, stop_ids=stop_ids)
    assert len({len(answer) for answer in stopped}) > 1
    for whole, answer in zip(free, stopped, strict=True):
        assert answer == whole[: len(answer)]


def test_beam_search_carries_each_beams_marker_along(
    hf_model: Qwen2ForCausalLM, crosscoder: Crosscoder
) -> None:
    results = []
    for use_cache in (True, False):
        with SteeringHook(crosscoder, {4: 1.5}, source="base", after=[9, 3]).on(hf_model):
            results.append(
                hf_model.generate(
                    torch.tensor([[9, 3, 4], [7, 5, 9]]),
                    attention_mask=torch.ones(2, 3),
                    max_new_tokens=10,
                    num_beams=4,
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                    use_cache=use_cache,
                ).tolist()
            )
    assert results[0] == results[1]


def test_from_position_counts_without_padding(model: LanguageModel, crosscoder: Crosscoder) -> None:
    hook = SteeringHook(crosscoder, {4: 1.5}, source="distilled", from_position=3)

    def change(stream: Tensor, tokens: list[int]) -> Tensor:
        return stream + hook.vector * (torch.arange(len(tokens)) >= 3)[None, :, None]

    by_hand = [manual_greedy(model, p, hook_name=HOOKS["distilled"], change=change, n=8) for p in PROMPTS]
    with hook.on(model):
        assert generate(model, PROMPTS, max_new_tokens=8, stop_ids=()) == by_hand


def test_at_tokens_adds_only_where_such_a_token_was_read(
    model: LanguageModel, crosscoder: Crosscoder
) -> None:
    wanted = (*range(4, 20),)
    hook = SteeringHook(crosscoder, {4: 1.5}, source="distilled", at_tokens=wanted)

    def change(stream: Tensor, tokens: list[int]) -> Tensor:
        return stream + hook.vector * torch.isin(torch.tensor(tokens), torch.tensor(wanted))[None, :, None]

    by_hand = [manual_greedy(model, p, hook_name=HOOKS["distilled"], change=change, n=8) for p in PROMPTS]
    with hook.on(model):
        assert generate(model, PROMPTS, max_new_tokens=8, stop_ids=()) == by_hand
    with pytest.raises(ValueError, match="at_tokens is empty"):
        SteeringHook(crosscoder, {4: 1.5}, source="distilled", at_tokens=())


def test_entering_in_the_middle_of_a_generation_raises(
    hf_model: Qwen2ForCausalLM, crosscoder: Crosscoder
) -> None:
    prefix = hf_model(random_tokens(1, 4), use_cache=True)
    hook = SteeringHook(crosscoder, {4: 1.0}, source="base", after=MARKER)
    with hook.on(hf_model), pytest.raises(RuntimeError, match="the KV cache holds 4 tokens"):
        hf_model(random_tokens(1, 1), past_key_values=prefix.past_key_values)
    assert hook_count(hf_model) == 0


def test_nothing_stays_behind_after_an_exception(
    model: LanguageModel, hf_model: Qwen2ForCausalLM, crosscoder: Crosscoder
) -> None:
    tokens = random_tokens(1, 5)
    plain = model.logits(tokens)
    bridged = load_model(model.bridge, name="bridge")
    bridged.logits(
        tokens
    )  # transformers adds its own capturing hooks to a bridged model on its first forward
    before = hook_count(model.bridge)
    for target in (model, hf_model, model.bridge):
        for after in (None, MARKER):
            hook = SteeringHook(crosscoder, {4: 1.0}, source="base", after=after)
            with pytest.raises(ValueError, match="token ids must lie in"), hook.on(target) as steered:
                steered.logits(tokens + 40)
    assert hook_count(hf_model) == 0
    assert hook_count(model.bridge) == before
    assert torch.equal(model.logits(tokens), plain)
    assert_close(bridged.logits(tokens), plain, rtol=1e-4, atol=2e-5)


def test_the_cache_gets_its_own_methods_back(hf_model: Qwen2ForCausalLM, crosscoder: Crosscoder) -> None:
    first, second = (SteeringHook(crosscoder, {i: 1.0}, source="base", after=MARKER) for i in (4, 5))
    with first.on(hf_model), second.on(hf_model):
        cache = hf_model(random_tokens(2, 4), use_cache=True).past_key_values
        hf_model(random_tokens(2, 1), past_key_values=cache)
        assert "reorder_cache" in vars(cache)
    assert "reorder_cache" not in vars(cache)


def test_a_second_cache_in_the_middle_of_a_generation_raises(
    hf_model: Qwen2ForCausalLM, crosscoder: Crosscoder
) -> None:
    with torch.no_grad(), SteeringHook(crosscoder, {4: 1.0}, source="base", after=MARKER).on(hf_model):
        first = hf_model(random_tokens(2, 4), use_cache=True).past_key_values
        hf_model(random_tokens(2, 5), use_cache=True)
        with pytest.raises(RuntimeError, match="in none or in another"):
            hf_model(random_tokens(2, 1), past_key_values=first)


def test_repeated_rows_of_a_cache_keep_their_own_history(
    model: LanguageModel, hf_model: Qwen2ForCausalLM, crosscoder: Crosscoder
) -> None:
    tokens, hook = (
        torch.tensor([[9, MARKER, 4], [5, 6, 7]]),
        SteeringHook(crosscoder, {4: 1.5}, source="base", after=MARKER),
    )
    more = random_tokens(4, 2)
    with hook.on(hf_model), torch.no_grad():
        cache = hf_model(tokens, use_cache=True).past_key_values
        cache.batch_repeat_interleave(2)
        cached = hf_model(more, past_key_values=cache).logits
        whole = model.logits(torch.cat([tokens.repeat_interleave(2, dim=0), more], dim=1))
    assert_close(cached, whole[:, 3:], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_is_seen_in_the_masks_of_a_static_cache(
    hf_model: Qwen2ForCausalLM, crosscoder: Crosscoder, attention: str
) -> None:
    hf_model.set_attn_implementation(attention)
    longest = max(map(len, PROMPTS))
    padded = torch.tensor([[MARKER] * (longest - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in PROMPTS])
    answers = []
    for cache in ("dynamic", "static"):
        with SteeringHook(crosscoder, {4: 1.5}, source="base", after=MARKER, from_position=2).on(hf_model):
            out = hf_model.generate(
                padded, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None,
                pad_token_id=0, cache_implementation=cache,
            )  # fmt: skip
        answers.append(out.tolist())
    assert answers[0] == answers[1]


def test_chosen_positions_count_without_padding(model: LanguageModel, crosscoder: Crosscoder) -> None:
    hook = SteeringHook(crosscoder, {4: 3.0}, source="distilled", positions=(0, 2, 5))

    def change(stream: Tensor, tokens: list[int]) -> Tensor:
        is_chosen = torch.isin(torch.arange(len(tokens)), torch.tensor([0, 2, 5]))
        return stream + hook.vector * is_chosen[None, :, None]

    by_hand = [manual_greedy(model, p, hook_name=HOOKS["distilled"], change=change, n=8) for p in PROMPTS]
    assert by_hand != generate(model, PROMPTS, max_new_tokens=8, stop_ids=())
    with hook.on(model):
        assert generate(model, PROMPTS, max_new_tokens=8, stop_ids=()) == by_hand


def test_padding_on_the_right_is_never_chosen(
    model: LanguageModel, hf_model: Qwen2ForCausalLM, crosscoder: Crosscoder
) -> None:
    tokens, mask = torch.full((2, 6), 5), torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    seen: list[Tensor] = []
    limits = ({"positions": range(9)}, {"from_position": 1}, {"at_tokens": (5,)}, {"positions": (1, 3, 5)})
    for limit in limits:
        hook = SteeringHook(crosscoder, {4: 3.0}, source="base", **limit)
        with hook.on(model), model.edit(HOOKS["base"], lambda stream: seen.append(stream) or stream):
            hf_model(tokens, attention_mask=mask)
    with model.edit(HOOKS["base"], lambda stream: seen.append(stream) or stream):
        hf_model(tokens, attention_mask=mask)
    changed = [(stream != seen[-1]).any(dim=2).int().tolist() for stream in seen[:-1]]
    assert changed == [
        [[1, 1, 1, 1, 0, 0], [1] * 6],
        [[0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]],
        [[1, 1, 1, 1, 0, 0], [1] * 6],
        [[0, 1, 0, 1, 0, 0], [0, 1, 0, 1, 0, 1]],
    ]


def test_a_random_control_has_the_same_norm_and_another_direction(generator: torch.Generator) -> None:
    vector = torch.arange(1.0, 17.0)
    controls = torch.stack([random_vector_like(vector, generator=generator) for _ in range(400)])
    assert_close(controls.norm(dim=1), vector.norm().expand(400))
    assert (controls @ vector / vector.norm() ** 2).abs().mean() < 0.3


def test_unusable_requests_raise(model: LanguageModel, crosscoder: Crosscoder) -> None:
    with pytest.raises(ValueError, match=r"no source is named 'chat'; the sources are \['base'"):
        SteeringHook(crosscoder, {0: 1.0}, source="chat")
    with pytest.raises(ValueError, match=r"latent 24 is outside 0\.\.23"):
        SteeringHook(crosscoder, {24: 1.0}, source="base")
    with pytest.raises(ValueError, match="names no hook"):
        SteeringHook(crosscoder, {0: 1.0}, source="own tensors")
    with pytest.raises(ValueError, match="edits is empty"):
        SteeringHook(crosscoder, {}, source="base")
    with pytest.raises(ValueError, match="NaN or infinite"):
        SteeringHook(crosscoder, {0: float("nan")}, source="base")
    with pytest.raises(ValueError, match="max_activations goes with"):
        SteeringHook(crosscoder, {0: 1.0}, source="base", unit="max_activation")
    with pytest.raises(ValueError, match="no entry for latent 0"):
        SteeringHook(crosscoder, {0: 1.0}, source="base", unit="max_activation", max_activations={1: 2.0})
    with torch.no_grad():
        crosscoder.W_dec[5, :16] = 0.0
    with pytest.raises(ValueError, match=r"latent 5 has decoder norm 0.0 in source 'base'"):
        SteeringHook(crosscoder, {5: 1.0}, source="base")


def test_unusable_targets_raise(model: LanguageModel, hf_model: Qwen2ForCausalLM) -> None:
    with (
        pytest.raises(ValueError, match="width 8, but the residual stream of 'toy' has 16"),
        AddVector(torch.ones(8), hook_name="half").on(model),
    ):
        pass
    with (
        pytest.raises(ValueError, match="needs a tokenizer"),
        AddVector(torch.ones(16), hook_name="half", after="w5").on(hf_model),
    ):
        pass
    with (
        pytest.raises(ValueError, match="not in the vocabulary"),
        AddVector(torch.ones(16), hook_name="half", after="w99").on(model),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"expected at least one id in \[0, 40\)"),
        AddVector(torch.ones(16), hook_name="half", after=40).on(model),
    ):
        pass
