"""The check at load of models that were read only up to a hook."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from crosscoders.errors import AdapterMismatchError
from crosscoders.models import load_model
from crosscoders.models.adapters import validate_model
from tests.models.derived_configs import narrow_model

CUTS = ["half", "blocks.1.hook_resid_post", "blocks.3.hook_resid_post", "blocks.0.hook_resid_pre"]


@pytest.mark.parametrize("up_to", CUTS)
def test_a_truncated_model_is_checked_as_far_as_it_goes(
    up_to: str, config_of: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    narrow_model(config_of("Qwen2.5-1.5B")).save_pretrained(tmp_path)
    model = load_model(tmp_path, name="short", up_to=up_to, validate=False)
    kept = [sorted(vars(module)) for module in model.causal_lm.modules()]
    validate_model(model)
    assert [sorted(vars(module)) for module in model.causal_lm.modules()] == kept
    damaged = load_model(tmp_path, name="short", up_to=up_to, validate=False)
    with torch.no_grad():
        damaged.causal_lm.embed_tokens.weight[:, 5] = torch.nan
    with pytest.raises(AdapterMismatchError, match=r"'blocks.0.hook_resid_pre'.*embed_tokens.weight"):
        validate_model(damaged)


@pytest.mark.parametrize("up_to", CUTS[:3])
def test_damage_in_a_truncated_model_is_caught(
    up_to: str, config_of: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    narrow_model(config_of("Qwen3-4B")).save_pretrained(tmp_path)
    edited = load_model(tmp_path, name="short", up_to=up_to, validate=False)
    edited.causal_lm.layers[1].register_forward_pre_hook(lambda _, args: (args[0] + 1.0, *args[1:]))
    with pytest.raises(AdapterMismatchError, match=r"'blocks.1.hook_resid_pre'.* hidden state 1"):
        validate_model(edited)
    without = load_model(tmp_path, name="short", up_to=up_to, validate=False)
    without.causal_lm.layers[1].self_attn.q_norm = nn.Identity()
    with pytest.raises(AdapterMismatchError, match=r"expected self_attn\.q_norm\.weight"):
        validate_model(without)


@pytest.mark.parametrize("up_to", CUTS)
def test_what_passes_beyond_the_last_held_layer_is_compared_too(
    up_to: str, config_of: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    narrow_model(config_of("Qwen2.5-1.5B")).save_pretrained(tmp_path)
    model = load_model(tmp_path, name="short", up_to=up_to, validate=False)
    model.causal_lm.norm.register_forward_hook(lambda module, args, output: output + 1.0)
    with pytest.raises(AdapterMismatchError, match=r"hook_resid_(pre|post)'.*exactly Hugging Face's hidden"):
        validate_model(model)
