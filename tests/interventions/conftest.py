"""A toy model, and an untrained crosscoder that reads it twice."""

import pytest
from transformers import Qwen2ForCausalLM

from crosscoders.activation_fns import ReLU
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.models import LanguageModel, load_model
from crosscoders.sources import Source
from tests.data.toy_models import toy_model, toy_tokenizer


@pytest.fixture
def hf_model() -> Qwen2ForCausalLM:
    return toy_model()


@pytest.fixture
def model(hf_model: Qwen2ForCausalLM) -> LanguageModel:
    return load_model(hf_model, name="toy", tokenizer=toy_tokenizer())


@pytest.fixture
def crosscoder() -> Crosscoder:
    sources = (
        Source(name="base", d_model=16, hook_name="blocks.1.hook_resid_pre", scale=2.0),
        Source(name="distilled", d_model=16, hook_name="blocks.1.hook_resid_post", scale=0.25),
        Source(name="own tensors", d_model=16),
    )
    return Crosscoder(CrosscoderConfig(sources=sources, n_latents=24, activation_fn=ReLU()))
