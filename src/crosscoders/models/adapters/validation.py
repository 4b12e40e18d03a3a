"""`validate_model`: is a loaded model what its config says, and do its hooks read its hidden states?"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from crosscoders._typing import typed
from crosscoders.errors import AdapterMismatchError
from crosscoders.models.adapters.base import adapter_for
from crosscoders.models.base import LanguageModel
from crosscoders.models.hooks import (
    ResidualHook,
    evaluation_mode,
    has_own_hooks,
    layer_hooks,
    parse_residual_hook,
    residual_hook_names,
)

_N_TOKENS = 8
_HF_HOOKS_FLAG = "_output_capturing_hooks_installed"

_validated: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@typed
def validate_model(model: LanguageModel) -> None:
    """Check a model against its family and its hooks against Hugging Face's hidden states.

    The checks are: what the family's adapter expects of embedding, layers, biases, norms and ties; then one
    forward over a few token ids, in which every residual-stream hook must be finite and non-zero at each
    position and equal, bit for bit, to the entry of `output_hidden_states` that it stands for.

    The model is left as it was. A module that has passed is not run again when it is wrapped again, and not
    run inside an edit, where its hooks are meant to differ.

    Args:
        model: The model, whole or truncated, plain or a TransformerBridge.

    Raises:
        AdapterMismatchError: A check failed; the message says which model, what was expected and what found.
    """
    adapter = adapter_for(model)
    adapter.check_tokenizer(model)
    if model.causal_lm in _validated:
        return
    adapter.check(model)
    if has_own_hooks(model._layers):
        return
    _check_forward(model)
    _validated.add(model.causal_lm)


def _check_forward(model: LanguageModel) -> None:
    if model.device.type == "meta":
        raise AdapterMismatchError(
            f"model {model.name!r}: its weights are on the meta device (never loaded, or kept elsewhere by "
            "accelerate); load them into memory, or load from a path with offload=True."
        )
    captured, hidden_states = _run(model, _token_ids(model))
    for name in _hooks_held(model):
        if name not in captured:
            raise AdapterMismatchError(
                f"model {model.name!r}: a forward ran without reaching {name!r}; its layers are not run in "
                "the order of the list, or not at all."
            )
        _check_values(model, name, captured[name])
        _check_hidden_state(model, name, captured[name], hidden_states)


def _hooks_held(model: LanguageModel) -> list[str]:
    """Every residual-stream hook that the model has the weights for."""
    names = residual_hook_names(model.n_layers_held)
    return list(dict.fromkeys([*names, *([] if model.cut is None else [model.cut.hook_name])]))


def _token_ids(model: LanguageModel) -> Tensor:
    """A few ids spread over the vocabulary, without its ends, where padding and unused rows lie."""
    n_tokens = min(_N_TOKENS, model.n_ctx or _N_TOKENS)
    ids = (2 * torch.arange(n_tokens) + 1) * model.n_vocab // (2 * n_tokens)
    return ids[None].to(model.device)


def _run(model: LanguageModel, tokens: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """One forward: what the hooks read, and what Hugging Face calls its hidden states."""
    captured: dict[str, Tensor] = {}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluation_mode(model.causal_lm))
        stack.enter_context(_without_leftover_hooks(model.causal_lm))
        stack.enter_context(_recording(model, captured))
        try:
            output = model._decoder(
                input_ids=tokens, use_cache=False, output_hidden_states=True, return_dict=True
            )
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError, TypeError) as err:  # shapes that do not fit, and the like
            raise AdapterMismatchError(
                f"model {model.name!r}: a forward over {tokens.shape[1]} tokens failed "
                f"({type(err).__name__}: {err}); do its weights belong to its config?"
            ) from err
    # Hugging Face records hidden states at layers; a model cut before its first layer has none.
    return captured, output.hidden_states or (output.last_hidden_state,)


@contextmanager
def _recording(model: LanguageModel, captured: dict[str, Tensor]) -> Iterator[None]:
    names = _hooks_held(model)
    if model.hf_model is not None:
        hooks = [(name, _place(name), _copier(captured, name)) for name in names]
        with layer_hooks(model._layers, hooks):
            yield
        return
    missing = sorted(set(names) - set(model.bridge.hook_dict))
    if missing:
        raise AdapterMismatchError(f"model {model.name!r}: its bridge has no hooks {missing}.")
    copiers = [(name, _copier(captured, name)) for name in names]
    with model.bridge.hooks(
        fwd_hooks=[(name, lambda value, hook, copy=copy: copy(value)) for name, copy in copiers]
    ):
        yield


def _copier(captured: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
    # A copy: a layer that adds to its input in place would change what was read, and it must show.
    def record(activation: Tensor) -> None:
        captured[name] = activation.clone()

    return record


def _place(name: str) -> ResidualHook:
    place = parse_residual_hook(name)
    assert place is not None  # every name here is a residual-stream hook
    return place


@contextmanager
def _without_leftover_hooks(module: nn.Module) -> Iterator[None]:
    """Take away the forward hooks that Hugging Face leaves behind when asked for hidden states."""
    children = list(module.modules())
    before = [set(child._forward_hooks) for child in children]
    flagged = [_HF_HOOKS_FLAG in vars(child) for child in children]
    try:
        yield
    finally:
        for child, known, was_flagged in zip(children, before, flagged, strict=True):
            for key in [key for key in child._forward_hooks if key not in known]:
                del child._forward_hooks[key]
            if not was_flagged:
                vars(child).pop(_HF_HOOKS_FLAG, None)


def _check_values(model: LanguageModel, name: str, activation: Tensor) -> None:
    largest = activation.abs().amax(dim=-1)
    if torch.isfinite(activation).all() and (largest > 0).all():
        if activation.shape[-1] == model.d_model:
            return
        raise AdapterMismatchError(
            f"model {model.name!r} at {name!r}: expected a residual stream of width {model.d_model}, found "
            f"{activation.shape[-1]}."
        )
    if torch.isfinite(activation).all():
        raise AdapterMismatchError(
            f"model {model.name!r} at {name!r}: the residual stream is zero at "
            f"{int((largest == 0).sum())} of {largest.numel()} positions; are its weights loaded?"
        )
    raise AdapterMismatchError(
        f"model {model.name!r} at {name!r}: expected a finite residual stream, found NaN or infinite values; "
        f"{_cause(model, name)}."
    )


def _cause(model: LanguageModel, name: str) -> str:
    damaged = [
        parameter_name
        for parameter_name, parameter in model.causal_lm.named_parameters()
        if not torch.isfinite(parameter).all()
    ]
    if damaged:
        return f"these weights are not finite: {', '.join(damaged[:4])}{', ...' * (len(damaged) > 4)}"
    if model.dtype == torch.float16:
        return "float16 ends at 65504, which this model's activations exceed; load it in bfloat16 or float32"
    return f"its weights are finite, so they are damaged or not those of this config (dtype {model.dtype})"


def _check_hidden_state(
    model: LanguageModel, name: str, activation: Tensor, hidden_states: tuple[Tensor, ...]
) -> None:
    n_layers = model.n_layers_held
    if len(hidden_states) != n_layers + 1:
        raise AdapterMismatchError(
            f"model {model.name!r}: expected {n_layers + 1} hidden states of {n_layers} layers, Hugging Face "
            f"returned {len(hidden_states)}."
        )
    index = _place(name).layer + _place(name).is_output
    expected = hidden_states[index]
    if index == n_layers:
        is_equal = any(_is_same(candidate, expected) for candidate in _normed(model, activation))
    else:
        is_equal = _is_same(activation, expected)
    if not is_equal:
        norm = ", after the final norm" if index == n_layers and not model.is_truncated else ""
        raise AdapterMismatchError(
            f"model {model.name!r} at {name!r}: expected exactly Hugging Face's hidden state {index}{norm}, "
            f"found another tensor (largest difference {_distance(activation, expected)}); is the model "
            "edited by somebody else's hook?"
        )


def _normed(model: LanguageModel, activation: Tensor) -> Iterator[Tensor]:
    """The last layer's output, and what each module beside the list of layers would make of it.

    A truncated model has no final norm, so the output itself is its last hidden state. Else Hugging Face
    returns it after the final norm (unless `tie_last_hidden_states` of the config is False), and models name
    that norm differently.
    """
    yield activation
    for child in _beside_layers(model):
        weight = getattr(child, "weight", None)
        if isinstance(weight, Tensor) and weight.shape == activation.shape[-1:]:
            with torch.no_grad(), evaluation_mode(child):
                yield child(activation)


def _beside_layers(model: LanguageModel) -> list[nn.Module]:
    """The modules that stand beside the list of layers; one of them is the final norm."""
    parents = [module for module in model._decoder.modules() if model._layers in module.children()]
    return [child for parent in parents for child in parent.children() if child is not model._layers]


def _is_same(activation: Tensor, expected: Tensor) -> bool:
    return activation.shape == expected.shape and torch.equal(activation.to(expected.device), expected)


def _distance(activation: Tensor, expected: Tensor) -> str:
    if activation.shape != expected.shape:
        return f"the shapes {list(activation.shape)} and {list(expected.shape)} differ"
    return f"{float((activation.to(expected.device).float() - expected.float()).abs().max()):g}"
