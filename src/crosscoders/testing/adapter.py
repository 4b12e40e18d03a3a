"""The check of a model adapter, on a small model of its family."""

import copy
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from crosscoders._typing import typed
from crosscoders.errors import AdapterMismatchError
from crosscoders.models.adapters import Adapter, adapter_for, adapter_for_config, validate_model
from crosscoders.models.base import LanguageModel
from crosscoders.models.hooks import decoder_layers, text_config
from crosscoders.testing.requirement import copies, require, same_bits

_N_ROWS, _N_TOKENS = 2, 8


class _Stop(Exception):
    """Raised inside an edit."""


@typed
def check_adapter(adapter: Adapter, hf_model: Any, *, tokenizer: Any = None, model_id: str = "") -> None:
    """Check what the library relies on in an adapter, and in the models that it stands for.

    The adapter: it is the one that is found for the model, from the module and from its config alone, and it
    claims no other architecture; its table of parameters is the same for both; the model passes its checks
    and `validate_model`, and a layer with a parameter too many does not. The model:
    captured activations equal Hugging Face's hidden states; an edit that changes nothing changes nothing, one
    that does changes the logits, and afterwards all is as before; weights, hooks and training flags stay as
    they were, also after an exception inside a forward.

    Args:
        adapter: The adapter.
        hf_model: A Hugging Face causal language model of its family; a narrow random one will do.
        tokenizer: A tokenizer, where the adapter recognizes a model by it.
        model_id: A directory or Hub id, likewise.

    Raises:
        AssertionError: A property fails.
    """
    model = LanguageModel(name="checked", hf_model=hf_model, tokenizer=tokenizer, model_id=model_id)
    before = _state_of(hf_model)
    _check_recognition(adapter, model)
    _check_expectations(adapter, model)
    _passes("validate_model", lambda: validate_model(model))
    _require_same_state(before, hf_model, after="validate_model")
    _check_capture(model)
    _require_same_state(before, hf_model, after="capture")
    _check_edit(model)
    _require_same_state(before, hf_model, after="an edit")
    _check_exception(model)
    _require_same_state(before, hf_model, after="an exception inside a forward")


def _passes(what: str, call: Callable[[], Any]) -> None:
    try:
        call()
    except AdapterMismatchError as err:
        raise AssertionError(f"{what} refuses the model: {err}") from err


def _check_recognition(adapter: Adapter, model: LanguageModel) -> None:
    cls = type(adapter)
    found = adapter_for(model)
    require(
        type(found) is cls, f"the adapter found for the model is {type(found).__name__}, not {cls.__name__}"
    )
    alone = adapter_for_config(
        _as_json(model.causal_lm.config), model_id=model.model_id, tokenizer=model.tokenizer
    )
    require(
        type(alone) is cls, f"by config.json alone the adapter is {type(alone).__name__}, not {cls.__name__}"
    )
    other = cls.recognize({"model_type": "another_architecture"}, model_id=model.model_id)
    require(not other, f"{cls.__name__} claims another architecture: {other}")


def _check_expectations(adapter: Adapter, model: LanguageModel) -> None:
    config = text_config(model.causal_lm)
    table = dict(adapter.layer_parameters(config))
    from_json = dict(adapter.layer_parameters(_as_json(config)))
    require(
        table == from_json, "layer_parameters differ between the config and the content of its config.json"
    )
    _passes("check_tokenizer", lambda: adapter.check_tokenizer(model))
    _passes("check", lambda: adapter.check(model))
    if not table:
        return
    damaged = copy.deepcopy(model.causal_lm)
    decoder_layers(damaged)[0].register_parameter("surplus", nn.Parameter(torch.ones(1)))
    try:
        adapter.check(LanguageModel(name="damaged", hf_model=damaged))
    except AdapterMismatchError:
        return
    raise AssertionError("check accepts a layer with a parameter too many")


def _as_json(config: Any) -> dict[str, Any]:
    return json.loads(config.to_json_string(use_diff=False))


def _tokens(model: LanguageModel) -> Tensor:
    shape = (_N_ROWS, min(_N_TOKENS, model.n_ctx or _N_TOKENS))
    return torch.randint(model.n_vocab, shape, generator=torch.Generator().manual_seed(0)).to(model.device)


@torch.no_grad()
def _check_capture(model: LanguageModel) -> None:
    """Hidden state i is what layer i reads, and what layer i - 1 returned."""
    tokens, twin = _tokens(model), copy.deepcopy(model.causal_lm).eval()
    states = twin(input_ids=tokens, use_cache=False, output_hidden_states=True).hidden_states
    for layer in range(model.n_layers):
        pre, post = f"blocks.{layer}.hook_resid_pre", f"blocks.{layer}.hook_resid_post"
        # The last hidden state lies behind the final norm.
        expected = {pre: states[layer]} | ({post: states[layer + 1]} if layer + 1 < model.n_layers else {})
        captured = model.capture(tokens, list(expected))
        for name, state in expected.items():
            require(torch.equal(captured[name], state), f"captured {name} is not Hugging Face's hidden state")


def _check_edit(model: LanguageModel) -> None:
    tokens, hook = _tokens(model), "half"
    before = model.logits(tokens)
    require(torch.equal(model.logits(tokens), before), "the same tokens give other logits the second time")
    with model.edit(hook, lambda activation: activation):
        same = model.logits(tokens)
    require(torch.equal(same, before), "an edit that returns what it got changes the logits")
    with model.edit(hook, lambda activation: activation.roll(1, dims=-1)):
        changed = model.logits(tokens)
    require(not torch.equal(changed, before), "an edit at half depth does not reach the logits")
    require(torch.equal(model.logits(tokens), before), "an edit leaves the model changed")


def _check_exception(model: LanguageModel) -> None:
    def stop(activation: Tensor) -> Tensor:
        raise _Stop

    before = model.logits(_tokens(model))
    for use in (model.logits, lambda tokens: model.capture(tokens, ["blocks.0.hook_resid_post"])):
        try:
            with model.edit("blocks.0.hook_resid_pre", stop):
                use(_tokens(model))
        except _Stop:
            continue
        raise AssertionError("an exception inside an edit does not arrive")
    require(torch.equal(model.logits(_tokens(model)), before), "an exception leaves the model changed")


def _state_of(module: nn.Module) -> tuple[dict[str, Tensor], list[tuple[Any, ...]]]:
    """Weights, and each submodule's hooks and training flag."""
    flags = [
        (child.training, tuple(child._forward_hooks), tuple(child._forward_pre_hooks))
        for child in module.modules()
    ]
    return copies(module.state_dict()), flags


def _require_same_state(
    before: tuple[dict[str, Tensor], list[tuple[Any, ...]]], module: nn.Module, *, after: str
) -> None:
    weights, flags = _state_of(module)
    require(same_bits(before[0], weights), f"{after} leaves other weights")
    require(before[1] == flags, f"{after} leaves hooks or training flags behind")
