"""Several models, one tokenisation, one flat width."""

from pathlib import Path

import pytest
import torch
from tokenizers.models import WordLevel
from torch.testing import assert_close
from transformers import Qwen2ForCausalLM

from crosscoders.errors import AdapterMismatchError
from crosscoders.harvest import load_sources
from crosscoders.models import load_model, tokenizer_fingerprint
from crosscoders.models.attention import attention_error
from crosscoders.models.id_policy import IdPolicy, IdRule
from tests.data.toy_models import random_tokens, toy_model, toy_tokenizer


def test_sources_of_unequal_width_and_depth_lie_side_by_side() -> None:
    wide, deep = toy_model(d_model=32, n_layers=2), toy_model(n_layers=4, seed=1)
    sources = load_sources({"wide": wide, "deep": deep})
    tokens = random_tokens(3, 6)
    activations = sources.harvest(tokens)
    assert [(s.name, s.d_model, s.hook_name, s.scale) for s in sources.sources] == [
        ("wide", 32, "blocks.1.hook_resid_pre", 1.0),
        ("deep", 16, "blocks.2.hook_resid_pre", 1.0),
    ]
    assert (activations.shape, activations.dtype) == ((3, 6, 48), torch.float32)
    with torch.no_grad():
        expected = [wide(tokens, output_hidden_states=True).hidden_states[1]]
        expected.append(deep(tokens, output_hidden_states=True).hidden_states[2])
    assert torch.equal(activations, torch.cat(expected, dim=-1))


def test_two_layers_of_one_model_run_it_once(hf_model: Qwen2ForCausalLM) -> None:
    hooks = {"early": "blocks.0.hook_resid_post", "late": "blocks.1.hook_resid_post"}
    sources = load_sources({"early": hf_model, "late": hf_model}, hook_name=hooks)
    calls: list[int] = []
    handle = hf_model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    activations = sources.harvest(random_tokens(2, 5))
    handle.remove()
    one_by_one = [
        load_sources({name: hf_model}, hook_name=hook).harvest(random_tokens(2, 5))
        for name, hook in hooks.items()
    ]
    assert len(calls) == 1
    assert torch.equal(activations, torch.cat(one_by_one, dim=-1))


def test_directories_modules_and_bridges_give_the_same_sources(
    tmp_path: Path, hf_model: Qwen2ForCausalLM
) -> None:
    hf_model.save_pretrained(tmp_path)
    toy_tokenizer().save_pretrained(tmp_path)
    bridge = load_model(hf_model, name="toy").bridge
    sources = load_sources(
        {
            "directory": str(tmp_path),
            "module": hf_model,
            "bridge": load_model(bridge, name="b", tokenizer=toy_tokenizer()),
        }
    )
    directory, module, bridged = sources.harvest(random_tokens(2, 5)).split(16, dim=-1)
    assert torch.equal(directory, module)
    assert_close(bridged, module, rtol=1e-4, atol=2e-5)
    assert sources.sources[0].model_id == str(tmp_path)
    assert sources.tokenizer.get_vocab() == toy_tokenizer().get_vocab()


def test_other_hooks_bring_their_own_width(hf_model: Qwen2ForCausalLM) -> None:
    sources = load_sources({"toy": hf_model}, hook_name="blocks.1.mlp.hook_post")
    assert sources.sources[0].d_model == 32
    assert sources.harvest(random_tokens(2, 5)).shape == (2, 5, 32)


def test_tokenizers_whose_ids_differ_raise_at_loading(tmp_path: Path) -> None:
    for name, swapped in (("a", None), ("b", (5, 9))):
        toy_model().save_pretrained(tmp_path / name)
        toy_tokenizer(swapped=swapped).save_pretrained(tmp_path / name)
    with pytest.raises(AdapterMismatchError, match=r"'base' and 'distilled': 5: 'w5' / 'w9'"):
        load_sources({"base": tmp_path / "a", "distilled": tmp_path / "b"})
    with pytest.raises(AdapterMismatchError, match=r"'tokenizer' and 'base': 5"):
        load_sources({"base": tmp_path / "a"}, tokenizer=toy_tokenizer(swapped=(5, 9)))


def test_a_hook_that_one_model_lacks_raises_with_near_names() -> None:
    models = {"shallow": toy_model(n_layers=2), "deep": toy_model(n_layers=4)}
    with pytest.raises(
        ValueError, match=r"'shallow' \(2 layers\) has no hook 'blocks.3.*nearest are \['blocks"
    ):
        load_sources(models, hook_name="blocks.3.hook_resid_pre")
    with pytest.raises(
        ValueError, match=r"names the sources \['deep'\], but the models are \['deep', 'shallow'\]"
    ):
        load_sources(models, hook_name={"deep": "half"})
    with pytest.raises(ValueError, match="no models"):
        load_sources({})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_activations_name_source_hook_and_place(bad: float) -> None:
    damaged = toy_model(seed=1)
    sources = load_sources({"base": toy_model(), "damaged": damaged}, hook_name="blocks.0.hook_resid_pre")
    with torch.no_grad():  # what loading checks was still sound
        damaged.model.embed_tokens.weight[7] = bad
    tokens = random_tokens(3, 5) % 7
    sources.harvest(tokens)
    tokens[1, 3] = 7
    with pytest.raises(
        ValueError, match=r"'damaged' at 'blocks.0.hook_resid_pre': 1 .*\(sequence 1, position 3\)"
    ):
        sources.harvest(tokens)


def test_ids_outside_one_models_vocabulary_raise() -> None:
    sources = load_sources({"base": toy_model()})
    with pytest.raises(ValueError, match=r"'base': token ids must lie in \[0, 40\)"):
        sources.harvest(torch.full((1, 3), 41))


def saved(folder: Path, *, n_layers: int = 4, d_model: int = 16, seed: int = 0, tokenizer=None) -> str:
    toy_model(n_layers=n_layers, d_model=d_model, seed=seed).save_pretrained(folder)
    (tokenizer or toy_tokenizer()).save_pretrained(folder)
    return str(folder)


def test_settings_by_source_reach_their_model_and_name_exactly_the_sources(tmp_path: Path) -> None:
    models = {name: saved(tmp_path / name, seed=seed) for seed, name in enumerate("ab")}
    sources = load_sources(models, dtype={"a": torch.bfloat16, "b": None})
    assert [sources.models[name].dtype for name in "ab"] == [torch.bfloat16, torch.float32]
    whole = load_sources(models).harvest(random_tokens(2, 5))
    mixed = sources.harvest(random_tokens(2, 5))
    assert torch.equal(mixed[..., 16:], whole[..., 16:])
    assert not torch.equal(mixed[..., :16], whole[..., :16])
    assert_close(mixed, whole, rtol=0.1, atol=0.1)
    for setting in ({"dtype": {"a": None}}, {"device": {"a": "cpu"}}, {"offload": {"b": True, "c": True}}):
        with pytest.raises(ValueError, match=r"names the sources .*, but the models are \['a', 'b'\]"):
            load_sources(models, **setting)
    with pytest.raises(ValueError, match="revision='v1' is for Hub ids"):
        load_sources(models, revision={"a": "v1", "b": None})


def test_truncated_sources_of_unequal_depth_give_the_same_bits(tmp_path: Path) -> None:
    models = {"deep": saved(tmp_path / "a", n_layers=6), "wide": saved(tmp_path / "b", d_model=32)}
    whole, cut = load_sources(models), load_sources(models, truncate=True)
    assert [(m.is_truncated, m.n_layers_held) for m in cut.models.values()] == [(True, 3), (True, 2)]
    assert [source.hook_name for source in cut.sources] == [source.hook_name for source in whole.sources]
    tokens = random_tokens(3, 7)
    assert torch.equal(cut.harvest(tokens), whole.harvest(tokens))
    with pytest.raises(ValueError, match=r"blocks\.3\.hook_resid_pre"):
        cut.models["deep"].logits(tokens)


def test_sources_of_one_path_share_one_load_up_to_the_deepest_hook(tmp_path: Path) -> None:
    path = saved(tmp_path / "a", n_layers=6)
    hooks = {"early": "blocks.0.hook_resid_post", "half": "half", "late": "blocks.4.hook_resid_pre"}
    sources = load_sources(dict.fromkeys(hooks, path), hook_name=hooks, truncate=True)
    assert len({id(model.causal_lm) for model in sources.models.values()}) == 1
    assert [(n, m.name, m.n_layers_held) for n, m in sources.models.items()] == [(n, n, 4) for n in hooks]
    whole = load_sources(dict.fromkeys(hooks, path), hook_name=hooks)
    assert torch.equal(sources.harvest(random_tokens(2, 5)), whole.harvest(random_tokens(2, 5)))
    mixed = {"a": "blocks.1.hook_resid_pre", "b": "blocks.1.mlp.hook_post"}
    assert (
        not load_sources(dict.fromkeys("ab", path), hook_name=mixed, truncate=True).models["a"].is_truncated
    )


def weights(sources) -> dict[str, list[tuple[int, torch.Tensor]]]:
    return {
        name: [(t.data_ptr(), t.clone()) for t in [*lm.causal_lm.parameters(), *lm.causal_lm.buffers()]]
        for name, lm in sources.models.items()
    }  # fmt: skip


def assert_untouched(sources, before) -> None:
    for name, now in weights(sources).items():
        for (place, value), (old_place, old_value) in zip(now, before[name], strict=True):
            assert place == old_place
            assert torch.equal(value, old_value)


def test_offloading_changes_no_activation_and_no_weight(tmp_path: Path) -> None:
    models = {name: saved(tmp_path / name, seed=seed) for seed, name in enumerate("ab")}
    sources = load_sources(models, offload=True, truncate=True)
    before, tokens = weights(sources), random_tokens(2, 5)
    assert torch.equal(sources.harvest(tokens), load_sources(models).harvest(tokens))
    assert_untouched(sources, before)


def test_only_the_model_that_reads_is_on_its_device(tmp_path: Path) -> None:
    """The meta device stands in for a GPU."""
    models = {name: saved(tmp_path / name, seed=seed) for seed, name in enumerate("ab")}
    sources = load_sources(models, offload=True, device={"a": "cpu", "b": "meta"})
    seen: list[dict[str, str]] = []

    def note(*_: object) -> None:
        seen.append({name: str(model.device) for name, model in sources.models.items()})

    for model in sources.models.values():
        model.causal_lm.base_model.register_forward_pre_hook(note)
    with pytest.raises((RuntimeError, NotImplementedError)):
        sources.harvest(random_tokens(2, 5))
    assert seen == [{"a": "cpu", "b": "cpu"}, {"a": "cpu", "b": "meta"}]
    assert {str(model.device) for model in sources.models.values()} == {"cpu"}


def test_offloaded_weights_come_home_after_every_exception(tmp_path: Path) -> None:
    """The meta device stands in for a GPU: weights leave for it, and what is read there is refused."""
    models = {name: saved(tmp_path / name, seed=seed) for seed, name in enumerate("ab")}
    sources = load_sources(models, offload={"a": True, "b": False}, device={"a": "meta", "b": "cpu"})
    before = weights(sources)
    with sources.on_device("a") as model:
        assert {str(p.device) for p in model.causal_lm.parameters()} == {"meta"}
        assert {str(b.device) for b in model.causal_lm.buffers()} == {"meta"}
        assert model.causal_lm.lm_head.weight is model.causal_lm.model.embed_tokens.weight
    assert_untouched(sources, before)
    with pytest.raises((RuntimeError, NotImplementedError)):
        sources.harvest(random_tokens(2, 5))
    assert_untouched(sources, before)
    with pytest.raises(ValueError, match="token ids must lie in"):
        load_sources(models, offload=True).harvest(torch.full((1, 3), 41))


def test_what_cannot_be_offloaded_is_refused(tmp_path: Path, hf_model: Qwen2ForCausalLM) -> None:
    with pytest.raises(ValueError, match="works on the residual stream"):
        load_sources({"a": hf_model}, hook_name="blocks.1.mlp.hook_post", offload=True)
    elsewhere = toy_model().to("meta")
    with pytest.raises(ValueError, match="the module is on meta"):
        load_sources({"a": elsewhere}, offload=True)


def test_ids_with_two_meanings_are_masked_dropped_or_replaced(tmp_path: Path) -> None:
    models = {
        "base": saved(tmp_path / "a"),
        "distilled": saved(tmp_path / "b", seed=1, tokenizer=toy_tokenizer(swapped=(5, 9))),
    }
    tokens = torch.tensor([[4, 5, 9, 7], [8, 6, 4, 4]])
    masked = load_sources(models, id_policy="mask")
    plain = [load_sources({name: path}).harvest(tokens) for name, path in models.items()]
    assert masked.exclude_token_ids == (5, 9)
    assert torch.equal(masked.harvest(tokens), torch.cat(plain, dim=-1))
    dropping = load_sources(models, id_policy="drop")
    with pytest.raises(ValueError, match=r"ids \[5, 9\] mean different things.*drop_from"):
        dropping.harvest(tokens)
    assert dropping.harvest(tokens[1:]).shape == (1, 4, 32)


def test_a_replaced_id_is_read_by_its_source_alone_even_where_sources_share_a_model(
    hf_model: Qwen2ForCausalLM,
) -> None:
    rule = IdRule(action="replace", token_ids=(5,), source="other", neutral=7)
    model = load_model(hf_model, name="m", tokenizer=toy_tokenizer())
    sources = load_sources({"own": model, "other": model}, id_policy=IdPolicy(rules=(rule,)))
    tokens = torch.tensor([[4, 5, 6], [4, 8, 6]])
    own, other = sources.harvest(tokens).split(16, dim=-1)
    alone = load_sources({"own": hf_model})
    assert torch.equal(own, alone.harvest(tokens))
    assert torch.equal(other, alone.harvest(torch.where(tokens == 5, 7, tokens)))
    assert sources.exclude_token_ids == (5,)


def test_sources_say_which_vocabulary_they_were_read_with(tmp_path: Path, hf_model: Qwen2ForCausalLM) -> None:
    sources = load_sources({"with": saved(tmp_path / "a"), "without": hf_model})
    assert {s.tokenizer_fingerprint for s in sources.sources} == {tokenizer_fingerprint(toy_tokenizer())}
    assert load_sources({"none": hf_model}).sources[0].tokenizer_fingerprint is None


def test_fast_attention_is_compared_with_eager_and_a_difference_raises(hf_model: Qwen2ForCausalLM) -> None:
    sources = load_sources({"toy": hf_model}, hook_name="blocks.2.hook_resid_post")
    errors = sources.check_attention(random_tokens(2, 20))
    assert 0 <= errors["toy"] < 1e-5
    assert hf_model.config._attn_implementation == "sdpa"
    bias = hf_model.model.layers[1].self_attn.scaling
    hf_model.model.layers[1].self_attn.is_causal = False  # which only the fast path reads
    with pytest.raises(AdapterMismatchError, match="fast and eager attention differ by"):
        sources.check_attention(random_tokens(2, 20))
    hf_model.model.layers[1].self_attn.is_causal = True
    assert hf_model.model.layers[1].self_attn.scaling == bias


def test_attention_error_is_zero_for_a_model_that_is_eager(hf_model: Qwen2ForCausalLM) -> None:
    hf_model.set_attn_implementation("eager")
    model = load_model(hf_model, name="toy")
    assert attention_error(model, random_tokens(2, 9)) == 0.0
    assert attention_error(load_model(model.bridge, name="b"), random_tokens(2, 9)) == 0.0


def test_a_source_may_give_the_tokenizer() -> None:
    first, second = toy_tokenizer(), toy_tokenizer(swapped=(5, 6))
    models = {
        "base": load_model(toy_model(), name="a", tokenizer=first),
        "distilled": load_model(toy_model(seed=1), name="b", tokenizer=second),
    }
    assert load_sources(models, id_policy="mask").tokenizer is first
    assert load_sources(models, id_policy="mask", tokenizer="distilled").tokenizer is second
    with pytest.raises(ValueError, match=r"only \['base', 'distilled'\] have a tokenizer"):
        load_sources(models, id_policy="mask", tokenizer="third")


def test_attention_is_checked_on_what_the_source_reads() -> None:
    first, second = toy_model(), toy_model(seed=1)
    second.resize_token_embeddings(30)
    tokenizer = toy_tokenizer()
    vocabulary = {token: i for token, i in tokenizer.get_vocab().items() if i < 30}
    tokenizer.backend_tokenizer.model = WordLevel(vocabulary, unk_token="<unk>")
    rule = IdRule(action="replace", token_ids=tuple(range(30, 40)), source="small", neutral=7)
    models = {
        "large": load_model(first, name="large", tokenizer=toy_tokenizer()),
        "small": load_model(second, name="small", tokenizer=tokenizer),
    }
    sources = load_sources(models, id_policy=IdPolicy(rules=(rule,)))
    tokens = torch.tensor([[4, 35, 6, 8]])
    assert sources.harvest(tokens).shape == (1, 4, 32)
    assert set(sources.check_attention(tokens)) == {"large", "small"}
