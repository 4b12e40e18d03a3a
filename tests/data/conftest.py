"""Fixtures shared by the tests of the data side."""

import pytest
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from crosscoders.models import LanguageModel, load_model
from tests.data.toy_models import toy_model, toy_tokenizer


@pytest.fixture
def hf_model() -> Qwen2ForCausalLM:
    return toy_model()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return toy_tokenizer()


@pytest.fixture
def model(hf_model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    return load_model(hf_model, name="toy", tokenizer=tokenizer)
