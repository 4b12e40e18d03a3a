"""What is said of sequences longer than a model's context."""

import warnings

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, MptConfig, MptForCausalLM

from crosscoders.models import load_model
from crosscoders.models.adapters import check_context, context_warning, exceeds_context
from tests.data.toy_models import random_tokens, toy_gpt2, toy_model


def test_context_is_a_limit_for_learned_positions_and_a_warning_for_rotary_ones() -> None:
    rotary, learned = load_model(toy_model(), name="rotary"), load_model(toy_gpt2(), name="learned")
    found = [exceeds_context(model, n) for model in (rotary, learned) for n in (64, 65)]
    assert found == ["ok", "beyond", "ok", "impossible"]
    with pytest.raises(ValueError, match="model 'b': sequences of 65 tokens exceed its context of 64"):
        context_warning({"a": rotary, "b": learned}, 65)
    short, other = load_model(toy_gpt2(), name="fits"), load_model(toy_model(), name="c")
    short.causal_lm.config.n_positions = 80
    with pytest.warns(UserWarning, match=r"'a' has 64, 'c' has 64\. .* cut the sequences to 64 tokens"):
        context_warning({"a": rotary, "fits": short, "c": other}, 65)


def test_each_model_is_warned_about_once_a_length() -> None:
    model = load_model(toy_model(), name="toy")
    with pytest.warns(UserWarning, match="sequences of 70 tokens exceed the context of 1 model"):
        check_context(model, 70)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_context(model, 70)
        check_context(model, 64)
        context_warning({"other name": model}, 69)
    with pytest.warns(UserWarning, match="sequences of 71"):
        check_context(model, 71)


def test_rotary_models_do_run_beyond_their_context_and_the_others_do_not() -> None:
    tokens = random_tokens(1, 70)
    with torch.no_grad():
        assert torch.isfinite(toy_model()(tokens).logits).all()
        with pytest.raises((IndexError, RuntimeError)):
            toy_gpt2()(tokens)


def test_models_without_a_table_of_positions_have_no_context() -> None:
    config = BloomConfig(vocab_size=40, hidden_size=16, n_layer=3, n_head=2)
    bloom = load_model(BloomForCausalLM(config), name="alibi")
    assert bloom.n_ctx is None
    assert exceeds_context(bloom, 10**6) == "ok"
    check_context(bloom, 10**6)
    assert bloom.capture(random_tokens(1, 70), ["half"])["half"].shape == (1, 70, 16)
    mpt = MptForCausalLM(MptConfig(vocab_size=40, d_model=16, n_layers=3, n_heads=2, max_seq_len=32))
    assert load_model(mpt, name="mpt").n_ctx == 32
