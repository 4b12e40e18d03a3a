"""Reading and editing language models at hooks."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from crosscoders.errors import AdapterMismatchError
from crosscoders.models import LanguageModel, generate, load_model
from crosscoders.models.hooks import residual_hook_names
from tests.data.toy_models import random_tokens, toy_gpt2, toy_model, toy_tokenizer


def hook_count(module: nn.Module) -> int:
    return sum(len(child._forward_hooks) + len(child._forward_pre_hooks) for child in module.modules())


def count_calls(module: nn.Module) -> list[int]:
    calls: list[int] = []
    forward = module.forward

    def counted(*args: object, **kwargs: object) -> object:
        calls.append(1)
        return forward(*args, **kwargs)

    module.forward = counted
    return calls


def test_fast_path_equals_the_bridge_at_every_residual_hook(
    hf_model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    model, tokens = load_model(hf_model, name="toy", tokenizer=tokenizer), random_tokens(3, 9)
    names = [*residual_hook_names(3), "blocks.1.hook_in", "blocks.1.hook_out"]
    bridged = load_model(model.bridge, name="bridge")
    fast, slow = model.capture(tokens, names), bridged.capture(tokens, names)
    assert list(fast) == names
    for name in names:
        assert_close(fast[name], slow[name], rtol=1e-4, atol=2e-5)
    with torch.no_grad():
        cache = model.bridge.run_with_cache(tokens)[1]
    assert_close(fast["blocks.2.hook_resid_post"], cache["blocks.2.hook_resid_post"], rtol=1e-4, atol=2e-5)


def test_fast_path_equals_hugging_face_hidden_states(
    model: LanguageModel, hf_model: Qwen2ForCausalLM
) -> None:
    tokens = random_tokens(2, 7)
    captured = model.capture(tokens, residual_hook_names(3))
    with torch.no_grad():
        hidden = hf_model(tokens, output_hidden_states=True).hidden_states
    for layer in range(3):
        assert torch.equal(captured[f"blocks.{layer}.hook_resid_pre"], hidden[layer])
    for layer in range(2):  # the last entry of hidden_states has passed the final norm
        assert torch.equal(captured[f"blocks.{layer}.hook_resid_post"], hidden[layer + 1])


def test_two_threads_on_one_model_do_not_mix(hf_model: Qwen2ForCausalLM) -> None:
    model, tokens = load_model(hf_model, name="toy"), random_tokens(2, 5)
    hook = residual_hook_names(3)[2]
    expected = model.capture(tokens, [hook])[hook]

    def edited() -> None:
        for _ in range(60):
            with model.edit(residual_hook_names(3)[0], lambda x: x + 1.0):
                model.capture(tokens, [hook])

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(edited)
        found = [model.capture(tokens, [hook])[hook] for _ in range(120)]
        other.result()
    assert all(torch.equal(each, expected) for each in found)


def test_other_hooks_run_through_the_bridge(model: LanguageModel) -> None:
    tokens = random_tokens(2, 5)
    captured = model.capture(
        tokens, ["blocks.1.mlp.hook_out", "blocks.1.hook_resid_mid", "blocks.1.hook_resid_post"]
    )
    total = captured["blocks.1.mlp.hook_out"] + captured["blocks.1.hook_resid_mid"]
    assert_close(total, captured["blocks.1.hook_resid_post"], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("hook_name", "layers_run"),
    [
        ("blocks.1.hook_resid_pre", [1, 0, 0]),
        ("blocks.1.hook_resid_post", [1, 1, 0]),
        ("blocks.0.hook_resid_pre", [0, 0, 0]),
    ],
)
def test_capture_stops_at_the_deepest_hook(
    model: LanguageModel, hf_model: Qwen2ForCausalLM, hook_name: str, layers_run: list[int]
) -> None:
    calls = [count_calls(layer) for layer in hf_model.model.layers]
    after = [count_calls(hf_model.model.norm), count_calls(hf_model.lm_head)]
    model.capture(random_tokens(2, 5), ["blocks.0.hook_resid_pre", hook_name])
    assert [len(called) for called in calls] == layers_run
    assert [len(called) for called in after] == [0, 0]


def test_bridge_capture_stops_at_the_deepest_hook(model: LanguageModel) -> None:
    decoder = model.bridge.original_model.model
    calls = [
        count_calls(decoder.layers[1].mlp),
        count_calls(decoder.layers[2]),
        count_calls(model.bridge.original_model.lm_head),
    ]
    model.capture(random_tokens(2, 5), ["blocks.1.attn.hook_out"])
    assert [len(called) for called in calls] == [0, 0, 0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("training", [True, False])
def test_the_users_module_is_left_as_it_was(attention: str, training: bool) -> None:
    hf_model = toy_model()
    hf_model.set_attn_implementation(attention)
    hf_model.train(training)
    hf_model.model.layers[1].mlp.train(not training)
    flags = [child.training for child in hf_model.modules()]
    types = [type(child) for child in hf_model.modules()]
    state = {key: value.clone() for key, value in hf_model.state_dict().items()}
    model = load_model(hf_model, name="toy", tokenizer=toy_tokenizer())
    model.capture(random_tokens(2, 5), ["half"])
    model.capture(random_tokens(2, 5), ["blocks.1.mlp.hook_out"])
    model.logits(random_tokens(2, 5))
    assert hf_model.config._attn_implementation == attention
    assert [child.training for child in hf_model.modules()] == flags
    assert [type(child) for child in hf_model.modules()] == types
    assert hook_count(hf_model) == 0
    assert all(torch.equal(value, state[key]) for key, value in hf_model.state_dict().items())


def test_the_bridge_shares_the_weights(model: LanguageModel, hf_model: Qwen2ForCausalLM) -> None:
    tokens, name = random_tokens(2, 5), "blocks.1.mlp.hook_out"
    before = model.capture(tokens, [name])[name]
    with torch.no_grad():
        hf_model.model.layers[1].mlp.down_proj.weight.mul_(2.0)
    assert_close(model.capture(tokens, [name])[name], 2.0 * before)


@pytest.mark.parametrize("bos", [False, True])
def test_a_bridge_boots_with_nameless_tokenizers_and_with_none(hf_model: Qwen2ForCausalLM, bos: bool) -> None:
    for tokenizer in (toy_tokenizer(bos=bos), None):
        model = load_model(hf_model, name="toy", tokenizer=tokenizer)
        assert model.capture(random_tokens(1, 4), ["blocks.0.mlp.hook_out"])[
            "blocks.0.mlp.hook_out"
        ].shape == (1, 4, 16)


def test_dropout_is_off_while_reading() -> None:
    hf_model = toy_model()
    for layer in hf_model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model = load_model(hf_model, name="toy")
    expected = model.capture(random_tokens(2, 9), ["blocks.2.hook_resid_post"])
    hf_model.train()
    assert_close(model.capture(random_tokens(2, 9), ["blocks.2.hook_resid_post"]), expected, rtol=0, atol=0)


def test_real_positions_do_not_depend_on_padding_to_the_right(model: LanguageModel) -> None:
    tokens, name = random_tokens(2, 6), "blocks.2.hook_resid_post"
    alone = model.capture(tokens, [name])[name]
    for pad_id in (0, 7):
        padded = torch.cat([tokens, torch.full((2, 5), pad_id)], dim=1)
        assert_close(model.capture(padded, [name])[name][:, :6], alone, rtol=1e-4, atol=2e-5)


def test_hooks_are_gone_after_an_exception(model: LanguageModel, hf_model: Qwen2ForCausalLM) -> None:
    def fail(activation: Tensor) -> Tensor:
        raise RuntimeError("inside the edit")

    for name in ("blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"):
        with pytest.raises(RuntimeError, match="inside the edit"), model.edit(name, fail):
            model.logits(random_tokens(1, 4))
        with pytest.raises(RuntimeError, match="inside the edit"), model.edit(name, fail):
            model.capture(random_tokens(1, 4), ["blocks.2.hook_resid_post"])
    assert hook_count(hf_model) == 0


def test_hooks_are_gone_after_the_model_itself_fails(
    model: LanguageModel, hf_model: Qwen2ForCausalLM
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("inside the layer")

    own = hf_model.model.layers[1].forward
    hf_model.model.layers[1].forward = fail
    with pytest.raises(RuntimeError, match="inside the layer"):
        model.capture(random_tokens(1, 4), ["blocks.2.hook_resid_post"])
    hf_model.model.layers[1].forward = own
    assert hook_count(hf_model) == 0


@pytest.mark.parametrize("side", ["pre", "post"])
@pytest.mark.parametrize("via_bridge", [False, True])
def test_an_edit_changes_the_logits_and_leaves_nothing_behind(
    model: LanguageModel, side: str, via_bridge: bool
) -> None:
    edited = load_model(model.bridge, name="bridge") if via_bridge else model
    tokens, name = random_tokens(2, 5), f"blocks.1.hook_resid_{side}"
    plain = edited.logits(tokens)
    with edited.edit(name, lambda activation: activation + 1.0):
        assert (edited.logits(tokens) - plain).abs().max() > 0.01
        seen = edited.capture(tokens, [name])[name]
    assert_close(seen, edited.capture(tokens, [name])[name] + 1.0)
    assert torch.equal(edited.logits(tokens), plain)


@pytest.mark.parametrize(
    "returned", [torch.zeros(1, 4, 15), torch.zeros(1, 4, 16, dtype=torch.float64), None]
)
def test_an_edit_must_keep_shape_and_dtype(model: LanguageModel, returned: Tensor | None) -> None:
    with (
        pytest.raises(ValueError, match="must return the shape and dtype"),
        model.edit("half", lambda _: returned),
    ):
        model.logits(random_tokens(1, 4))


def test_bridges_of_other_hooks_refuse_to_run_inside_an_edit(model: LanguageModel) -> None:
    same = model.edit("half", lambda activation: activation)
    with same, pytest.raises(RuntimeError, match="cannot boot"):
        model.capture(random_tokens(1, 4), ["blocks.1.mlp.hook_out"])
    model.capture(random_tokens(1, 4), ["blocks.1.mlp.hook_out"])
    same = model.edit("half", lambda activation: activation)
    with same, pytest.raises(ValueError, match="only residual-stream hooks"):
        model.capture(random_tokens(1, 4), ["blocks.1.mlp.hook_out"])


def test_half_depth_runs_half_of_the_layers() -> None:
    for n_layers, expected in ((2, 1), (3, 1), (4, 2)):
        model = load_model(toy_model(n_layers=n_layers), name="toy")
        assert model.resolve_hook("half") == f"blocks.{expected}.hook_resid_pre"


@pytest.mark.parametrize(
    ("hook_name", "near"),
    [
        ("blocks.7.hook_resid_pre", "blocks.0.hook_resid_pre"),
        ("blocks.1.hook_resid_pst", "blocks.1.hook_resid_post"),
        ("block.1.hook_resid_pre", "blocks.1.hook_resid_pre"),
        ("blocks.1.mlp.hook_ot", "blocks.1.mlp.hook_out"),
        ("blocks.-1.hook_resid_pre", "blocks.1.hook_resid_pre"),
    ],
)
def test_an_unknown_hook_names_the_nearest(model: LanguageModel, hook_name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"no hook '{hook_name}'.*{near}"):
        model.capture(random_tokens(1, 4), [hook_name])


def test_unusable_tokens_raise(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 40\), got 0 to 40"):
        model.capture(torch.tensor([[0, 40]]), ["half"])
    with pytest.raises(ValueError, match="exceed its context of 64"):
        load_model(toy_gpt2(), name="no rotation").capture(random_tokens(1, 65), ["half"])
    with pytest.raises(ValueError, match="empty batch"):
        model.logits(torch.zeros(0, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="one vector per token"):
        model.capture(random_tokens(1, 4), ["blocks.1.attn.hook_pattern"])


def test_rotary_positions_run_beyond_the_context_with_one_warning() -> None:
    model = load_model(toy_model(), name="short")
    with pytest.warns(UserWarning, match=r"65 tokens exceed the context of 1 model\(s\): 'short' has 64"):
        first = model.capture(random_tokens(1, 65), ["half"])["half"]
    assert torch.equal(model.capture(random_tokens(1, 65), ["half"])["half"], first)  # and no second warning


def test_a_local_directory_loads_with_its_tokenizer(
    tmp_path: Path, hf_model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    hf_model.save_pretrained(tmp_path)
    assert load_model(tmp_path, name="saved").tokenizer is None
    tokenizer.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, name="saved")
    assert loaded.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert loaded.tokenizer("w5 <eos> w9")["input_ids"] == [5, 1, 9]
    assert (loaded.model_id, loaded.d_model, loaded.n_layers, loaded.n_ctx) == (str(tmp_path), 16, 3, 64)
    assert torch.equal(
        loaded.logits(random_tokens(1, 5)), load_model(hf_model, name="live").logits(random_tokens(1, 5))
    )
    assert load_model(str(tmp_path), name="half", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_another_family_with_learned_positions_is_read_edited_and_continued() -> None:
    hf_model = toy_gpt2()
    model, tokens = load_model(hf_model, name="gpt2"), random_tokens(2, 6)
    captured = model.capture(tokens, ["blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"])
    bridged = load_model(model.bridge, name="bridge").capture(tokens, list(captured))
    for name, activation in captured.items():
        assert_close(activation, bridged[name], rtol=1e-4, atol=2e-5)
    plain = model.logits(tokens)
    with model.edit("half", lambda activation: 2.0 * activation):
        assert (hf_model(tokens).logits - plain).abs().max() > 0.01
    prompts = [[5, 6, 7, 8, 9], [10], [11, 12]]
    alone = [generate(model, [prompt], max_new_tokens=9, stop_ids=())[0] for prompt in prompts]
    assert generate(model, prompts, max_new_tokens=9, stop_ids=()) == alone


def test_what_cannot_be_loaded_raises(tmp_path: Path, hf_model: Qwen2ForCausalLM) -> None:
    with pytest.raises(ValueError, match="neither a local directory with a model nor a Hub id"):
        load_model(tmp_path, name="empty")
    with pytest.raises(ValueError, match="expected a directory"):
        load_model(nn.Linear(2, 2), name="linear")
    with pytest.raises(ValueError, match=r"asked for torch\.bfloat16"):
        load_model(hf_model, name="toy", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="revision"):
        load_model(hf_model, name="toy", revision="main")


def test_a_tokenizer_of_a_larger_vocabulary_raises(hf_model: Qwen2ForCausalLM) -> None:
    tokenizer = toy_tokenizer()
    tokenizer.add_tokens(["one more"])
    with pytest.raises(AdapterMismatchError, match="ids up to 40"):
        load_model(hf_model, name="toy", tokenizer=tokenizer)
