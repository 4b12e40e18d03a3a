"""Several models, one tokenisation, one flat width."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import Qwen2ForCausalLM

from crosscoders.errors import AdapterMismatchError
from crosscoders.harvest import load_sources
from crosscoders.models import load_model
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
    with torch.no_grad():
        damaged.model.embed_tokens.weight[7] = bad
    sources = load_sources({"base": toy_model(), "damaged": damaged}, hook_name="blocks.0.hook_resid_pre")
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
