"""Residual-stream hooks on plain Hugging Face decoder layers, under their TransformerLens names.

`blocks.i.hook_resid_pre` is what layer i reads and `blocks.i.hook_resid_post` what it returns; `hook_in` and
`hook_out` are TransformerLens' other names of the same two tensors. Forward hooks on the layers give both
without TransformerLens' own (eager) attention, and an exception raised in the deepest hook ends the forward
there: later layers, the final norm and the unembedding never run.
"""

import difflib
import re
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from crosscoders.errors import AdapterMismatchError

_RESIDUAL_NAME = re.compile(r"blocks\.(0|[1-9][0-9]*)\.hook_(resid_pre|resid_post|in|out)")


class StopForward(Exception):
    """Raised inside a forward to end it once everything that was asked for has been seen."""


@dataclass(frozen=True, order=True)
class ResidualHook:
    """Place on the residual stream: what `layer` reads (`is_output` False) or returns (True).

    Ordered by depth, so `max` of several hooks is the deepest.
    """

    layer: int
    is_output: bool


class CutEnd(nn.Identity):
    """Stands in a truncated decoder where the final norm was, and passes the residual stream on.

    What it reads is what the first layer that is not there would have read.
    """


def parse_residual_hook(hook_name: str) -> ResidualHook | None:
    """The place that a TransformerLens hook name means, or None if it is no residual-stream hook.

    Args:
        hook_name: Such as "blocks.3.hook_resid_pre".
    """
    match = _RESIDUAL_NAME.fullmatch(hook_name)
    if match is None:
        return None
    return ResidualHook(layer=int(match[1]), is_output=match[2] in ("resid_post", "out"))


def residual_hook_names(n_layers: int) -> list[str]:
    """Every residual-stream hook name of a model with this many layers, in the order of depth."""
    return [f"blocks.{layer}.hook_resid_{side}" for layer in range(n_layers) for side in ("pre", "post")]


def nearest_names(hook_name: str, known: Iterable[str]) -> list[str]:
    """The known names most like a mistyped one, best first, for error messages."""
    return difflib.get_close_matches(hook_name, list(known), n=4, cutoff=0.3)


def decoder_layers(hf_model: nn.Module) -> nn.ModuleList:
    """The list of decoder layers of a Hugging Face causal language model.

    It is the shallowest `ModuleList` below the model with `config.num_hidden_layers` entries (experts and
    other lists lie deeper). In a truncated decoder its end (`CutEnd`) follows as one more entry.

    Args:
        hf_model: The model.

    Raises:
        AdapterMismatchError: No such list, or more than one at the same depth.
    """
    n_layers = text_config(hf_model).num_hidden_layers
    lists = [
        (name.count("."), name, module)
        for name, module in hf_model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    shallowest = [found for found in lists if found[0] == min(depth for depth, _, _ in lists)]
    if len(shallowest) != 1:
        raise AdapterMismatchError(
            f"{type(hf_model).__name__}: expected one list of {n_layers} decoder layers, found "
            f"{[name for _, name, _ in shallowest]}; pass a TransformerBridge of this model instead."
        )
    layers = shallowest[0][2]
    end = [module for module in hf_model.modules() if isinstance(module, CutEnd)]
    return nn.ModuleList([*layers, *end]) if end else layers


def text_config(hf_model: Any) -> Any:
    """The part of a Hugging Face config that describes the language model."""
    return hf_model.config.get_text_config(decoder=True)


class _LayerHook:
    """A forward (pre-)hook of ours; the class is how `has_own_hooks` recognises it."""

    def __init__(self, name: str, fn: Callable[[Tensor], Tensor | None]) -> None:
        self.name = name
        self.fn = fn

    def before(self, layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Forward pre-hook: show, and perhaps replace, what the layer reads."""
        activation = args[0] if args else kwargs["hidden_states"]
        edited = self.fn(self._checked(activation))
        if edited is None:
            return None
        if args:
            return (edited, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edited}

    def after(self, layer: nn.Module, args: tuple, output: Any) -> Any:
        """Forward hook: show, and perhaps replace, what the layer returns."""
        activation = output[0] if isinstance(output, tuple) else output
        edited = self.fn(self._checked(activation))
        if edited is None:
            return None
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    def _checked(self, activation: Any) -> Tensor:
        if not isinstance(activation, Tensor) or activation.ndim != 3:
            got = tuple(activation.shape) if isinstance(activation, Tensor) else type(activation).__name__
            raise AdapterMismatchError(
                f"{self.name}: expected one residual stream [batch, pos, d_model], got {got}; "
                "this architecture needs a TransformerBridge."
            )
        return activation


@contextmanager
def layer_hooks(
    layers: Sequence[nn.Module] | nn.ModuleList,
    hooks: Sequence[tuple[str, ResidualHook, Callable[[Tensor], Tensor | None]]],
) -> Iterator[None]:
    """Attach functions to places of the residual stream while the block runs.

    Functions at one place run in the order given. Every hook is removed at the end, also after an exception.

    Args:
        layers: The decoder layers.
        hooks: (name for messages, place, function); the function gets the activation [batch pos d_model] and
            returns its replacement, or None to leave it.
    """
    handles: list[RemovableHandle] = []
    try:
        for name, place, fn in hooks:
            layer, hook = layers[place.layer], _LayerHook(name, fn)
            if place.is_output:
                handles.append(layer.register_forward_hook(hook.after))
            else:
                handles.append(layer.register_forward_pre_hook(hook.before, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def has_own_hooks(layers: Sequence[nn.Module] | nn.ModuleList) -> bool:
    """Whether a hook of this module is attached to any of the layers right now."""
    attached = [
        hook
        for layer in layers
        for hook in (*layer._forward_hooks.values(), *layer._forward_pre_hooks.values())
    ]
    return any(isinstance(getattr(hook, "__self__", None), _LayerHook) for hook in attached)


@contextmanager
def one_thread(module: nn.Module) -> Iterator[None]:
    """Keep other threads that ask likewise away from a model for the block.

    Hooks belong to the model, not to a thread: an edit made in one would act on what another reads.

    Args:
        module: The model; one thread may enter several times.
    """
    with _choosing:
        lock = _locks.setdefault(module, threading.RLock())
    with lock:
        yield


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Switch every submodule to `eval()` for the block, then give each its own flag back; see `one_thread`.

    Args:
        module: The model; dropout and the like must not act while activations are read.
    """
    with one_thread(module):
        training = [child for child in module.modules() if child.training]
        try:
            for child in training:
                child.training = False
            yield
        finally:
            for child in training:
                child.training = True


_choosing = threading.Lock()
_locks: "weakref.WeakKeyDictionary[nn.Module, threading.RLock]" = weakref.WeakKeyDictionary()
