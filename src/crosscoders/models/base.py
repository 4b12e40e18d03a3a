"""`LanguageModel`: one causal language model, read and edited at named hooks."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from crosscoders._typing import typed
from crosscoders.errors import AdapterMismatchError
from crosscoders.models.bridge import boot_bridge
from crosscoders.models.context import check_context
from crosscoders.models.hooks import (
    ResidualHook,
    StopForward,
    decoder_layers,
    evaluation_mode,
    has_own_hooks,
    layer_hooks,
    nearest_names,
    one_thread,
    parse_residual_hook,
    residual_hook_names,
    text_config,
)
from crosscoders.models.model_config import Cut
from crosscoders.models.trace import TokenTrace, trace_tokens


class LanguageModel:
    """A causal language model whose activations are read and edited by TransformerLens hook names.

    Residual-stream hooks (`blocks.i.hook_resid_pre`, `blocks.i.hook_resid_post`) run as forward hooks on the
    plain Hugging Face layers, with the model's own attention; every other hook runs through a
    TransformerBridge that is booted on first use and shares the weights. The wrapped model keeps its
    parameters, dtype, attention implementation and training flags.

    Sequences are read without an attention mask: a causal model's activation at a position does not depend
    on what stands to its right, so pad on the right and leave the padded positions out afterwards.

    Build it with `load_model`. A model that was read only up to a hook (`is_truncated`) has that hook and
    those before it; logits, generation and other hooks raise.

    Args:
        name: Name used in messages, and by `load_sources` as the source's name.
        hf_model: Plain Hugging Face causal language model, or None if there is only a bridge.
        bridge: TransformerBridge, or None to boot one from `hf_model` when a hook needs it.
        tokenizer: Its tokenizer, or None.
        model_id: Directory or Hub id it came from; empty for a module.
        revision: Hub commit it came from, if any.
        cut: Where a model that was read in part ends; None for a whole one.

    Raises:
        ValueError: Neither `hf_model` nor `bridge`.
    """

    def __init__(
        self,
        *,
        name: str,
        hf_model: nn.Module | None = None,
        bridge: Any = None,
        tokenizer: Any = None,
        model_id: str = "",
        revision: str | None = None,
        cut: Cut | None = None,
    ) -> None:
        if hf_model is None and bridge is None:
            raise ValueError(f"LanguageModel {name!r}: expected hf_model or bridge, got neither.")
        self.name = name
        self.model_id = model_id
        self.revision = revision
        self.tokenizer = tokenizer
        self.hf_model = hf_model
        self.cut = cut
        self._bridge = bridge
        self.validate()

    @property
    def causal_lm(self) -> Any:
        """The module that maps `input_ids` to logits: `hf_model`, or the one inside the bridge."""
        return self.hf_model if self.hf_model is not None else self._bridge.original_model

    @property
    def bridge(self) -> Any:
        """The TransformerBridge, booted from `hf_model` (which it leaves alone) on first use.

        Raises:
            RuntimeError: It would have to be booted inside an edit.
        """
        self.require_whole("a TransformerBridge")
        if self._bridge is None:
            assert self.hf_model is not None  # __init__ refused a model without either
            if has_own_hooks(self._layers):
                raise RuntimeError(
                    f"model {self.name!r}: cannot boot a TransformerBridge inside an edit; "
                    "use `.bridge` or the hook once before entering it."
                )
            self._bridge = boot_bridge(self.hf_model, model_id=self.model_id, tokenizer=self.tokenizer)
        return self._bridge

    @functools.cached_property
    def _layers(self) -> nn.ModuleList:
        return decoder_layers(self.causal_lm)

    @property
    def _decoder(self) -> nn.Module:
        return self.causal_lm.base_model

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(text_config(self.causal_lm).hidden_size)

    @property
    def n_layers(self) -> int:
        """Number of decoder layers of the whole model, so that "half" means the same for a truncated one."""
        return self.n_layers_held if self.cut is None else self.cut.n_layers

    @property
    def n_layers_held(self) -> int:
        """Number of decoder layers whose weights are there."""
        return int(text_config(self.causal_lm).num_hidden_layers)

    @property
    def is_truncated(self) -> bool:
        """Whether only the part up to a hook was read (`load_model(..., up_to=...)`)."""
        return self.cut is not None

    @property
    def n_ctx(self) -> int | None:
        """Longest sequence that the model was made for; None where its config states none (ALiBi)."""
        config = text_config(self.causal_lm)
        stated = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
        return next((int(length) for length in stated if length is not None), None)

    @property
    def n_vocab(self) -> int:
        """Number of token ids that the model embeds."""
        return int(text_config(self.causal_lm).vocab_size)

    @property
    def device(self) -> torch.device:
        """Device on which tokens enter the model."""
        return next(self.causal_lm.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, and of captured activations."""
        return next(self.causal_lm.parameters()).dtype

    def validate(self) -> None:
        """Check that the model is what its config says and that its tokenizer fits.

        Raises:
            AdapterMismatchError: The layers, the embedding width or the tokenizer's ids do not fit.
        """
        layers = decoder_layers(self.causal_lm)
        expected = self.n_layers if self.cut is None else self.cut.n_layers_held + 1
        if len(layers) != expected:
            raise AdapterMismatchError(
                f"model {self.name!r}: config says {expected} layers, found {len(layers)}."
            )
        if self.tokenizer is not None:
            largest = max(self.tokenizer.get_vocab().values())
            if largest >= self.n_vocab:
                raise AdapterMismatchError(
                    f"model {self.name!r}: its tokenizer has ids up to {largest}, but the model embeds only "
                    f"{self.n_vocab}; is this the tokenizer of another model?"
                )

    @typed
    def require_whole(self, what: str) -> None:
        """Raise if the model was read only up to a hook.

        Args:
            what: What needs the whole model, for the message.

        Raises:
            ValueError: The model is truncated.
        """
        if self.cut is not None:
            raise ValueError(
                f"model {self.name!r} was read only up to {self.cut.hook_name!r} "
                f"({self.n_layers_held} of {self.n_layers} layers), and {what} needs more; "
                "load it without up_to (or with a later hook)."
            )

    @typed
    def resolve_hook(self, hook_name: str) -> str:
        """Expand "half" and check that the model has the hook.

        Half depth is `blocks.{n_layers // 2}.hook_resid_pre`: half of the layers have run.

        Args:
            hook_name: A TransformerLens hook name, or "half".

        Returns:
            The full hook name.

        Raises:
            ValueError: The model has no such hook (the message names the nearest ones), or was not read as
                far as it.
        """
        if hook_name == "half":
            hook_name = f"blocks.{self.n_layers // 2}.hook_resid_pre"
        residual = parse_residual_hook(hook_name)
        if residual is not None and residual.layer < self.n_layers:
            if self.cut is not None and not self.cut.holds(residual):
                self.require_whole(f"hook {hook_name!r}")
            return hook_name
        known = set(residual_hook_names(self.n_layers))
        if residual is None and "hook_resid_p" not in hook_name:
            self.require_whole(f"hook {hook_name!r} (not one of the residual stream)")
            known |= set(self.bridge.hook_dict)
        if hook_name not in known:
            raise ValueError(
                f"model {self.name!r} ({self.n_layers} layers) has no hook {hook_name!r}; "
                f"the nearest are {nearest_names(hook_name, sorted(known))}, and 'half' is "
                f"'blocks.{self.n_layers // 2}.hook_resid_pre'."
            )
        return hook_name

    @typed
    def capture(self, tokens: Int[Tensor, "batch pos"], hook_names: Sequence[str]) -> dict[str, Tensor]:
        """Activations at some hooks; the forward ends at the deepest one and never computes logits.

        Args:
            tokens: Token ids, padded on the right if at all.
            hook_names: Hooks to read.

        Returns:
            For each hook name its activation [batch pos d_model], in the model's dtype, without gradient.

        Raises:
            ValueError: A hook that the model lacks, an id outside the vocabulary, or a sequence too long
                for a model without rotary positions (others warn beyond their context).
        """
        if not hook_names:
            raise ValueError(f"model {self.name!r}: capture got no hook names.")
        self._check_tokens(tokens)
        places = {
            self.resolve_hook(name): parse_residual_hook(self.resolve_hook(name)) for name in hook_names
        }
        is_residual = self.hf_model is not None and None not in places.values()
        run = self._capture_from_layers if is_residual else self._capture_from_bridge
        with torch.no_grad(), evaluation_mode(self.causal_lm):
            captured = run(tokens.to(self.device), places)
        return {name: captured[self.resolve_hook(name)] for name in hook_names}

    @typed
    def logits(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
        """Next-token logits at every position, with any active edit applied.

        Args:
            tokens: Token ids, padded on the right if at all.

        Returns:
            Logits in the model's dtype, without gradient.

        Raises:
            ValueError: The model is truncated, or the tokens do not fit it.
        """
        self.require_whole("the logits")
        self._check_tokens(tokens)
        with torch.no_grad(), evaluation_mode(self.causal_lm):
            return self.causal_lm(input_ids=tokens.to(self.device), use_cache=False, return_dict=True).logits

    @contextmanager
    def edit(self, hook_name: str, fn: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Replace the residual stream at a hook while the block runs.

        It acts on every forward of the wrapped model, `generate` with a KV cache included, where `fn` sees
        only the new positions. Several edits at one place act one after the other, in the order entered.
        Other threads that read the model wait until the block ends.

        Args:
            hook_name: A residual-stream hook, or "half".
            fn: Gets the activation [batch pos d_model] and returns one of the same shape and dtype.

        Returns:
            A context manager; the edit acts while it lasts.

        Raises:
            ValueError: The hook does not exist or is none of the residual stream.
        """
        resolved = self.resolve_hook(hook_name)
        place = parse_residual_hook(resolved)
        if place is None:
            raise ValueError(
                f"model {self.name!r}: edits act on the residual stream, got {resolved!r}; "
                f"use a hook such as {residual_hook_names(self.n_layers)[-2]!r}."
            )
        checked = functools.partial(_checked_edit, fn=fn, hook_name=resolved)
        if self.hf_model is not None:
            with one_thread(self.causal_lm), layer_hooks(self._layers, [(resolved, place, checked)]):
                yield
        else:
            edits = [(resolved, lambda activation, hook: checked(activation))]
            with one_thread(self.causal_lm), self._bridge.hooks(fwd_hooks=edits):
                yield

    @contextmanager
    def trace_tokens(self) -> Iterator[TokenTrace]:
        """Follow which tokens each row has read while the block runs (for edits that depend on them).

        Yields:
            A `TokenTrace` that is up to date inside every edit.
        """
        with trace_tokens(self._decoder) as trace:
            yield trace

    def _check_tokens(self, tokens: Tensor) -> None:
        if tokens.numel() == 0:
            raise ValueError(
                f"model {self.name!r}: got an empty batch of tokens, shape {tuple(tokens.shape)}."
            )
        check_context(self, tokens.shape[1])
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.n_vocab:
            raise ValueError(
                f"model {self.name!r}: token ids must lie in [0, {self.n_vocab}), got {low} to {high}; "
                "were these tokens made by another tokenizer?"
            )

    def _capture_from_layers(
        self, tokens: Tensor, places: dict[str, ResidualHook | None]
    ) -> dict[str, Tensor]:
        captured: dict[str, Tensor] = {}
        record = _recorder(captured, n_wanted=len(places))
        by_depth = sorted((place, name) for name, place in places.items() if place is not None)
        hooks = [(name, place, functools.partial(record, name)) for place, name in by_depth]
        with layer_hooks(self._layers, hooks):
            try:
                self._decoder(input_ids=tokens, use_cache=False)
            except StopForward:
                return captured
        raise AdapterMismatchError(
            f"model {self.name!r}: its layers ran, but not {sorted(set(places) - set(captured))}."
        )

    def _capture_from_bridge(
        self, tokens: Tensor, places: dict[str, ResidualHook | None]
    ) -> dict[str, Tensor]:
        if self.hf_model is not None and has_own_hooks(self._layers):
            raise ValueError(
                f"model {self.name!r}: inside an edit only residual-stream hooks can be captured, "
                f"got {sorted(places)}."
            )
        captured: dict[str, Tensor] = {}
        record = _recorder(captured, n_wanted=len(places))
        hooks = [(name, lambda activation, hook, name=name: record(name, activation)) for name in places]
        with evaluation_mode(self.bridge.original_model):
            try:
                self.bridge.run_with_hooks(tokens, fwd_hooks=hooks, return_type=None)
            except StopForward:
                return self._checked_bridge_shapes(captured, tokens)
        raise ValueError(
            f"model {self.name!r}: the forward ended without reaching {sorted(set(places) - set(captured))}."
        )

    def _checked_bridge_shapes(self, captured: dict[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
        for name, activation in captured.items():
            if activation.ndim != 3 or activation.shape[:2] != tokens.shape:
                raise ValueError(
                    f"model {self.name!r}: hook {name!r} has shape {tuple(activation.shape)}, expected "
                    f"[{tokens.shape[0]}, {tokens.shape[1]}, width]; choose a hook with one vector per token."
                )
        return captured


def _recorder(captured: dict[str, Tensor], *, n_wanted: int) -> Callable[[str, Tensor], None]:
    def record(name: str, activation: Tensor) -> None:
        captured[name] = activation
        if len(captured) == n_wanted:
            raise StopForward

    return record


def _checked_edit(activation: Tensor, *, fn: Callable[[Tensor], Tensor], hook_name: str) -> Tensor:
    edited = fn(activation)
    if not isinstance(edited, Tensor) or edited.shape != activation.shape or edited.dtype != activation.dtype:
        got = (tuple(edited.shape), edited.dtype) if isinstance(edited, Tensor) else type(edited).__name__
        raise ValueError(
            f"edit at {hook_name!r}: the function must return the shape and dtype it got, "
            f"{(tuple(activation.shape), activation.dtype)}, but returned {got}."
        )
    return edited
