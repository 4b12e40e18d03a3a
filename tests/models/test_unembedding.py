"""The readout matrix against what a step of the stream really does to a model's logits."""

from typing import Any

import pytest
import torch
import transformers

from crosscoders.errors import AdapterMismatchError
from crosscoders.models.base import LanguageModel
from crosscoders.models.load import load_model
from crosscoders.models.unembedding import logit_readout

SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
GPT2: dict[str, Any] = {
    "vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32,
    "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
READABLE = {
    "Qwen2": SHAPE,  # RMSNorm
    "Llama": {**SHAPE, "tie_word_embeddings": True},
    "Gemma": SHAPE,  # gain 1 + weight
    "GPT2": GPT2,  # LayerNorm with bias
    "Olmo": SHAPE,  # LayerNorm without parameters
}
REFUSED = {
    "Gemma2": {**SHAPE, "final_logit_softcapping": 30.0},
    "Granite": {**SHAPE, "logits_scaling": 4.0},
    "Cohere": {**SHAPE, "logit_scale": 0.5},
}


def tiny(family: str, values: dict[str, Any]) -> LanguageModel:
    """A small model of a family, every parameter random, norms and biases included."""
    config = getattr(transformers, f"{family}Config")(**values)
    name = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    module = getattr(transformers, name)(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return load_model(module, name="tiny", validate=False)


def logits_at(model: LanguageModel, stream: torch.Tensor) -> torch.Tensor:
    """The model's own logits where its last layer returns this vector."""
    with model.edit("blocks.1.hook_resid_post", lambda x: stream.to(x).expand_as(x)):
        return model.logits(torch.tensor([[5]]))[0, 0].double()


@pytest.mark.parametrize("family", READABLE)
def test_a_step_moves_the_logits_as_the_readout_says(family: str) -> None:
    model, generator = tiny(family, READABLE[family]), torch.Generator().manual_seed(1)
    d, x = torch.randn(2, 16, generator=generator)
    x = 50 * (x - x.mean())  # long against the step, and of mean zero: one law for both kinds of norm
    d = d - x * (x @ d) / (x @ x)  # along the stream a norm would take the step back
    step = (logits_at(model, x + d) - logits_at(model, x - d)) / 2 * float(x.square().mean().sqrt())
    expected = step - step.mean()
    found = logit_readout(model).double() @ d.double()
    assert float((found - expected).norm() / expected.norm()) < 2e-3


@pytest.mark.parametrize("family", REFUSED)
def test_models_that_scale_or_cap_their_logits_are_refused(family: str) -> None:
    with pytest.raises(AdapterMismatchError, match=r"caps|scales"):
        logit_readout(tiny(family, REFUSED[family]))


def test_only_the_ids_asked_for_are_read_and_averaged_over() -> None:
    model = tiny("Qwen2", SHAPE)
    some, whole = logit_readout(model, n_vocab=10), logit_readout(model)
    assert some.shape == (10, 16)
    torch.testing.assert_close(some, whole[:10] - whole[:10].mean(dim=0))


def test_half_precision_weights_give_the_same_readout_to_their_rounding() -> None:
    model = tiny("Qwen2", SHAPE)
    whole = logit_readout(model)
    model.causal_lm.to(torch.bfloat16)
    half = logit_readout(model)
    assert half.dtype == torch.float32
    assert float((half - whole).norm() / whole.norm()) < 1e-2


def test_the_model_is_left_as_it_was() -> None:
    model = tiny("Qwen2", SHAPE)
    model.causal_lm.train()
    before = {name: value.clone() for name, value in model.causal_lm.state_dict().items()}
    logit_readout(model)
    assert model.causal_lm.training
    assert not any(module._forward_hooks for module in model.causal_lm.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.causal_lm.state_dict().items())


def test_a_token_that_embeds_as_zero_changes_nothing() -> None:
    model = tiny("Qwen2", SHAPE)
    whole = logit_readout(model)
    with torch.no_grad():
        model.causal_lm.get_input_embeddings().weight[0] = 0
    torch.testing.assert_close(logit_readout(model), whole)


def test_a_norm_that_is_none_and_a_missing_one_are_refused() -> None:
    model = tiny("Qwen2", SHAPE)
    model.causal_lm.model.norm = torch.nn.Sequential(torch.nn.Tanh())
    with pytest.raises(AdapterMismatchError, match="neither an RMSNorm nor a LayerNorm"):
        logit_readout(model)
    model = tiny("Qwen2", SHAPE)
    model.causal_lm.get_output_embeddings = lambda: None
    with pytest.raises(AdapterMismatchError, match="no unembedding"):
        logit_readout(model)


def test_a_truncated_model_says_so(tmp_path: Any) -> None:
    tiny("Qwen2", SHAPE).causal_lm.save_pretrained(tmp_path)
    model = load_model(tmp_path, name="cut", up_to="blocks.1.hook_resid_pre", validate=False)
    with pytest.raises(ValueError, match="the unembedding needs more"):
        logit_readout(model)
