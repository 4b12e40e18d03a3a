"""Replacing the residual stream."""

import pytest
import torch
from jaxtyping import TypeCheckError
from torch.testing import assert_close
from transformers import Qwen2ForCausalLM

from crosscoders.activation_fns import ReLU
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.harvest import load_sources
from crosscoders.interventions import splice_scores, spliced_logits
from crosscoders.models import IdPolicy, IdRule, LanguageModel, load_model
from crosscoders.models.hooks import residual_hook_names
from tests.data.toy_models import random_tokens, toy_tokenizer


@pytest.mark.parametrize("hook_name", residual_hook_names(3))
@pytest.mark.parametrize("via_bridge", [False, True])
def test_replacing_the_stream_by_itself_changes_no_logits(
    model: LanguageModel, hook_name: str, via_bridge: bool
) -> None:
    read = load_model(model.bridge, name="bridge") if via_bridge else model
    tokens = random_tokens(2, 6)
    clean = read.capture(tokens, [hook_name])[hook_name]
    assert torch.equal(
        spliced_logits(read, tokens, hook_name=hook_name, replacement=clean), read.logits(tokens)
    )


def test_spliced_logits_equal_a_forward_by_hand(model: LanguageModel, hf_model: Qwen2ForCausalLM) -> None:
    tokens, decoder = random_tokens(2, 6), hf_model.model
    replacement = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        angles = decoder.rotary_emb(replacement, torch.arange(6)[None])
        mask = torch.full((6, 6), float("-inf")).triu(1)[None, None]
        last = decoder.layers[2](replacement, attention_mask=mask, position_embeddings=angles)
        by_hand = hf_model.lm_head(decoder.norm(last))
    for hook_name in ("blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"):
        spliced = spliced_logits(model, tokens, hook_name=hook_name, replacement=replacement)
        assert_close(spliced, by_hand, rtol=1e-4, atol=2e-5)


def test_positions_left_out_keep_their_own_activation(model: LanguageModel) -> None:
    tokens, name = random_tokens(2, 6), "blocks.1.hook_resid_post"
    clean = model.capture(tokens, [name])[name]
    where = torch.zeros(2, 6, dtype=torch.bool)
    where[:, 3:] = True
    mixed = torch.where(where[:, :, None], torch.zeros_like(clean), clean)
    spliced = spliced_logits(model, tokens, hook_name=name, replacement=torch.zeros_like(clean), where=where)
    assert torch.equal(spliced, spliced_logits(model, tokens, hook_name=name, replacement=mixed))
    assert_close(spliced[:, :3], model.logits(tokens)[:, :3])
    assert (spliced[:, 3:] - model.logits(tokens)[:, 3:]).abs().max() > 0.01


def test_a_replacement_of_another_width_raises(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="width 32, but the residual stream of 'toy' has 16"):
        spliced_logits(model, random_tokens(1, 4), hook_name="half", replacement=torch.zeros(1, 4, 32))
    too_long = torch.zeros(2, 8, 16)
    with pytest.raises(TypeCheckError, match="replacement"):
        spliced_logits(model, random_tokens(2, 5), hook_name="half", replacement=too_long)


def test_scores_are_of_the_tokens_that_each_source_reads(hf_model: Qwen2ForCausalLM) -> None:
    tokens = random_tokens(2, 8)
    tokens[:, 3] = 5
    rule = IdRule(action="replace", token_ids=(5,), source="replaced", neutral=7)
    model = load_model(hf_model, name="both", tokenizer=toy_tokenizer())
    sources = load_sources({"plain": model, "replaced": model}, id_policy=IdPolicy(rules=(rule,)))
    crosscoder = Crosscoder(CrosscoderConfig(sources=sources.sources, n_latents=8, activation_fn=ReLU()))
    mask = tokens != 5
    counted = mask[:, 1:] & mask[:, :-1]
    scores = splice_scores(crosscoder.eval(), sources, tokens, mask=mask)
    for name, read in (("plain", tokens), ("replaced", torch.where(tokens == 5, 7, tokens))):
        logits = sources.models[name].logits(read)[:, :-1][counted]
        expected = torch.nn.functional.cross_entropy(logits, tokens[:, 1:][counted])
        assert scores[name].ce_clean == pytest.approx(float(expected), rel=1e-5)
