"""The check at load: what it leaves alone, and what each kind of damage is reported as."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from crosscoders.errors import AdapterMismatchError
from crosscoders.models import LanguageModel, load_model
from crosscoders.models.adapters import adapter_for, validate_model
from tests.data.toy_models import random_tokens, toy_gpt2, toy_model
from tests.models.derived_configs import narrow_model


def unchecked(hf_model: Any, **kwargs: Any) -> LanguageModel:
    return LanguageModel(name="toy", hf_model=hf_model, **kwargs)


def hook_count(module: nn.Module) -> int:
    return sum(len(child._forward_hooks) + len(child._forward_pre_hooks) for child in module.modules())


@pytest.mark.parametrize("training", [True, False])
def test_validation_leaves_the_model_as_it_was(training: bool) -> None:
    hf_model = toy_model()
    hf_model.train(training)
    hf_model.model.layers[1].mlp.train(not training)
    flags = [child.training for child in hf_model.modules()]
    names = [sorted(vars(child)) for child in hf_model.modules()]
    config = hf_model.config.to_dict()
    state = {key: value.clone() for key, value in hf_model.state_dict().items()}
    rng = torch.get_rng_state()
    validate_model(unchecked(hf_model))
    assert [child.training for child in hf_model.modules()] == flags
    assert [sorted(vars(child)) for child in hf_model.modules()] == names
    assert hook_count(hf_model) == 0
    assert hf_model.config.to_dict() == config
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(value, state[key]) for key, value in hf_model.state_dict().items())


def test_hidden_states_can_still_be_asked_for_afterwards() -> None:
    hf_model, tokens = toy_model(), random_tokens(1, 5)
    before = hf_model(tokens, output_hidden_states=True).hidden_states
    n_hooks = hook_count(hf_model)  # Hugging Face leaves its own behind
    for model in (hf_model, toy_model()):
        validate_model(unchecked(model))
        after = model(tokens, output_hidden_states=True).hidden_states
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert hook_count(model) == n_hooks


def test_a_module_is_run_once_however_often_it_is_wrapped() -> None:
    hf_model = toy_model()
    calls: list[int] = []
    hf_model.model.embed_tokens.register_forward_hook(lambda *args: calls.append(1))
    for _ in range(2):
        validate_model(unchecked(hf_model))
    assert calls == [1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_are_valid(dtype: torch.dtype, config_of: Callable[[str], dict[str, Any]]) -> None:
    for name in ("Qwen2.5-14B", "Qwen3-4B"):
        model = load_model(narrow_model(config_of(name)).to(dtype), name="narrow")
        validate_model(model)
        assert model.dtype == dtype


def other_layer_count(hf_model: Any) -> None:
    hf_model.config.num_hidden_layers = 4


def other_width(hf_model: Any) -> None:
    hf_model.config.hidden_size = 24


def other_vocabulary(hf_model: Any) -> None:
    hf_model.config.vocab_size = 50


def removed_bias(hf_model: Any) -> None:
    hf_model.model.layers[2].self_attn.k_proj.bias = None


def added_bias(hf_model: Any) -> None:
    hf_model.model.layers[0].self_attn.o_proj.bias = nn.Parameter(torch.zeros(16))


def added_head_norm(hf_model: Any) -> None:
    hf_model.model.layers[0].self_attn.q_norm = nn.RMSNorm(8)


def narrow_norm(hf_model: Any) -> None:
    hf_model.model.layers[1].input_layernorm.weight = nn.Parameter(torch.ones(15))


def other_eps(hf_model: Any) -> None:
    hf_model.config.rms_norm_eps = 1e-5


def layer_norm(hf_model: Any) -> None:
    hf_model.model.layers[1].post_attention_layernorm = nn.LayerNorm(16, bias=False)


def untied(hf_model: Any) -> None:
    hf_model.lm_head.weight = nn.Parameter(hf_model.lm_head.weight.detach().clone())


def nan_weights(hf_model: Any) -> None:
    with torch.no_grad():
        hf_model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan


def nan_norm(hf_model: Any) -> None:
    with torch.no_grad():
        hf_model.model.layers[2].input_layernorm.weight[3] = torch.nan


def zero_embedding(hf_model: Any) -> None:
    with torch.no_grad():
        hf_model.model.embed_tokens.weight.zero_()


def left_over_edit(hf_model: Any) -> None:
    hf_model.model.layers[1].register_forward_pre_hook(lambda layer, args: (args[0] + 1.0, *args[1:]))


def layers_that_are_not_run(hf_model: Any) -> None:
    states = tuple(torch.ones(1, 8, 16) for _ in range(4))
    hf_model.model.forward = lambda **kwargs: BaseModelOutputWithPast(hidden_states=states)


def lost_hidden_state(hf_model: Any) -> None:
    forward = hf_model.model.forward
    hf_model.model.forward = lambda **kwargs: BaseModelOutputWithPast(
        hidden_states=forward(**kwargs).hidden_states[1:]
    )


def layer_of_another_width(hf_model: Any) -> None:
    forward = hf_model.model.layers[1].forward
    hf_model.model.layers[1].forward = lambda *args, **kwargs: forward(*args, **kwargs)[..., :8]


def layer_that_edits_in_place(hf_model: Any) -> None:
    forward = hf_model.model.layers[1].forward
    hf_model.model.layers[1].forward = lambda hidden, **kwargs: forward(hidden.mul_(2.0), **kwargs)


def layer_that_returns_something_else(hf_model: Any) -> None:
    hf_model.model.layers[2].forward = lambda *args, **kwargs: torch.zeros(1, 8, 16)


def layer_without_a_result(hf_model: Any) -> None:
    hf_model.model.layers[1].forward = lambda *args, **kwargs: ("cached", args[0])


def renormed_last_state(hf_model: Any) -> None:
    seen: list[int] = []

    def only_once(norm: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        seen.append(1)
        return output + 1.0 if len(seen) == 1 else None

    hf_model.model.norm.register_forward_hook(only_once)


DAMAGE: list[tuple[Callable[[Any], None], str]] = [
    (other_layer_count, "expected one list of 4 decoder layers"),
    (other_width, r"config says 40 ids of width 24, but the embedding is \[40, 16\]"),
    (other_vocabulary, r"config says 50 ids of width 16, but the embedding is \[40, 16\]"),
    (removed_bias, r"model 'toy', layer 2, .*'qwen2'.*expected self_attn.k_proj.bias \[8\], found none"),
    (added_bias, r"layer 0, .*expected no self_attn.o_proj.bias, found one of shape \[16\]"),
    (added_head_norm, r"layer 0, .*expected no self_attn.q_norm.weight, found one of shape \[8\]"),
    (narrow_norm, r"layer 1, .*expected input_layernorm.weight \[16\], found \[15\]"),
    (other_eps, "layer 0, .*expected input_layernorm to be an RMSNorm with eps 1e-05"),
    (layer_norm, "layer 1, .*expected post_attention_layernorm to be an RMSNorm with eps 1e-06"),
    (untied, "config says that the embeddings are tied, but they are untied"),
    (nan_weights, r"'blocks.1.hook_resid_post'.*NaN.*not finite: model.layers.1.mlp.up_proj.weight"),
    (nan_norm, r"'blocks.2.hook_resid_post'.*not finite: model.layers.2.input_layernorm.weight"),
    (zero_embedding, r"'blocks.0.hook_resid_pre': the residual stream is zero at 8 of 8 positions"),
    (left_over_edit, r"'blocks.1.hook_resid_pre'.*exactly Hugging Face's hidden state 1.*difference 1\)"),
    (layer_that_edits_in_place, r"'blocks.0.hook_resid_post'.*hidden state 1, found another tensor"),
    (layers_that_are_not_run, "a forward ran without reaching 'blocks.0.hook_resid_pre'"),
    (lost_hidden_state, "expected 4 hidden states of 3 layers, Hugging Face returned 3"),
    (layer_of_another_width, r"a forward over 8 tokens failed \(RuntimeError: .*do its weights belong"),
    (layer_that_returns_something_else, "'blocks.2.hook_resid_post': the residual stream is zero at 8 of 8"),
    (layer_without_a_result, r"blocks.1.hook_resid_post: expected one residual stream .*got str"),
    (renormed_last_state, r"'blocks.2.hook_resid_post'.*exactly .* state 3, after the final norm, found"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[each.__name__ for each, _ in DAMAGE])
def test_damage_is_caught_and_named(damage: Callable[[Any], None], message: str) -> None:
    hf_model = toy_model()
    damage(hf_model)
    with pytest.raises(AdapterMismatchError, match=message):
        validate_model(unchecked(hf_model))
    hf_model = toy_model()
    validate_model(unchecked(hf_model))


def test_the_last_hook_is_compared_through_the_final_norm_whatever_that_does() -> None:
    for hf_model, norm in ((toy_model(), "model.norm"), (toy_gpt2(), "transformer.ln_f")):
        shifted: list[Any] = []

        def shift(module: Any, args: Any, output: Any, seen: list[Any] = shifted) -> Any:
            seen.append(output + 1.0)
            return seen[-1]

        hf_model.get_submodule(norm).register_forward_hook(shift)
        validate_model(unchecked(hf_model))
        assert shifted, f"{norm} was never run, so nothing was compared through it"
    hf_model = toy_model()
    hf_model.config.tie_last_hidden_states = False  # Hugging Face then returns it before the norm
    validate_model(unchecked(hf_model))


def loud_model(config: dict[str, Any], dtype: torch.dtype) -> Any:
    hf_model = narrow_model(config).to(dtype)
    with torch.no_grad():
        for parameter in hf_model.model.layers[2].mlp.parameters():
            parameter.fill_(60.0)
    return hf_model


def test_float16_overflow_names_the_hook_and_the_way_out(config_of: Callable[[str], dict[str, Any]]) -> None:
    config = config_of("Qwen2.5-0.5B")
    for dtype in (torch.bfloat16, torch.float32):
        validate_model(unchecked(loud_model(config, dtype)))
    message = r"'blocks.2.hook_resid_post'.*65504.*load it in bfloat16 or float32"
    with pytest.raises(AdapterMismatchError, match=message):
        validate_model(unchecked(loud_model(config, torch.float16)))


def test_inside_an_edit_the_forward_waits() -> None:
    hf_model = toy_model()
    model = unchecked(hf_model)
    with model.edit("blocks.1.hook_resid_pre", lambda activation: activation * 0.0):
        validate_model(unchecked(hf_model))
    left_over_edit(hf_model)
    with pytest.raises(AdapterMismatchError, match="hidden state 1"):
        validate_model(model)


def test_a_model_that_returns_tuples_is_read_all_the_same() -> None:
    hf_model = toy_model()
    hf_model.config.return_dict = False
    validate_model(unchecked(hf_model))
    assert hf_model.config.return_dict is False


def test_weights_without_memory_are_refused_as_such() -> None:
    with torch.device("meta"):
        hf_model = type(toy_model())(toy_model().config)
    with pytest.raises(AdapterMismatchError, match="on the meta device"):
        validate_model(unchecked(hf_model))
    hf_model.lm_head.weight = nn.Parameter(hf_model.lm_head.weight.clone())  # as offloading leaves a tie
    adapter_for(unchecked(hf_model)).check(unchecked(hf_model))
