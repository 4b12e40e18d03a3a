"""Reading a model on the tokens that another model is reading, with a KV cache of its own."""

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from crosscoders.models.base import LanguageModel
from crosscoders.models.context import check_context
from crosscoders.models.generate import new_cache
from crosscoders.models.hooks import (
    StopForward,
    decoder_layers,
    evaluation_mode,
    layer_hooks,
    parse_residual_hook,
)
from crosscoders.models.trace import TokenTrace

_HOOK_TABLES = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


class Follower:
    """Activations of a model, edited by nobody, on the tokens that a `TokenTrace` sees go by.

    Each read runs the new tokens only, up to the deepest hook, behind a KV cache of its own; a history that
    the cache does not hold (no cache on the other side, or one that was cropped) is read again from the
    start. A plain Hugging Face model is read through a twin of its modules that shares the weights and has
    no hooks, so it may itself be edited, or be the model whose tokens are followed.

    Args:
        model: The model to read.
        hook_names: Hooks to read, all of its own.
        read_as: Gives the ids [batch pos] that this model reads in place of the trace's; None for the same.
    """

    def __init__(
        self,
        model: LanguageModel,
        hook_names: Sequence[str],
        *,
        read_as: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._model = model
        self._read_as = read_as
        self._hook_names = [model.resolve_hook(name) for name in hook_names]
        places = [(parse_residual_hook(name), name) for name in self._hook_names]
        self._places = sorted((place, name) for place, name in places if place is not None)
        is_residual = len(self._places) == len(places)
        self._twin = None if model.hf_model is None or not is_residual else _twin(model.hf_model)
        self._bridge: Any = model.bridge if self._twin is None else None
        self._cache: Any = None
        self._n_read = 0
        self._n_rows = 0

    def read(self, trace: TokenTrace) -> dict[str, Tensor]:
        """Activations of the new tokens.

        Args:
            trace: What the other model has read so far.

        Returns:
            For each hook name [batch pos d_model], without gradient.

        Raises:
            ValueError: A token id outside the vocabulary, or more tokens than a model without rotary
                positions holds.
        """
        n_rows, n_total = trace.tokens.shape
        n_past = n_total - trace.n_new
        goes_on = self._cache is not None and (self._n_rows, self._n_read) == (n_rows, n_past)
        start = n_past if goes_on and n_past > 0 else 0
        cache, self._cache = self._cache if start else new_cache(self._model), None
        captured = self._run(**self._inputs(trace, start=start), past_key_values=cache, use_cache=True)
        self._cache, self._n_rows, self._n_read = cache, n_rows, n_total
        return {name: activation[:, -trace.n_new :] for name, activation in captured.items()}

    def select_rows(self, rows: Tensor) -> None:
        """Keep or reorder the rows of the cache.

        Args:
            rows: Old index of each row [batch].
        """
        if self._cache is not None:
            self._cache.batch_select_indices(rows.to(self._model.device))
            self._n_rows = len(rows)

    def _inputs(self, trace: TokenTrace, *, start: int) -> dict[str, Tensor | None]:
        name, device = self._model.name, self._model.device
        tokens = trace.tokens.where(trace.is_real, 0)[:, start:]
        tokens = tokens if self._read_as is None else self._read_as(tokens)
        if int(tokens.max()) >= self._model.n_vocab:
            raise ValueError(
                f"model {name!r} is to read along, but token id {int(tokens.max())} lies outside its "
                f"vocabulary of {self._model.n_vocab}."
            )
        check_context(self._model, int(trace.position_ids.max()) + 1)
        mask = None if bool(trace.is_real.all()) else trace.is_real.long().to(device)
        position_ids = trace.position_ids[:, start:].to(device)
        return {"input_ids": tokens.to(device), "attention_mask": mask, "position_ids": position_ids}

    def _run(self, **inputs: Any) -> dict[str, Tensor]:
        captured: dict[str, Tensor] = {}

        def record(name: str, activation: Tensor) -> None:
            captured[name] = activation
            if len(captured) == len(self._hook_names):
                raise StopForward

        with torch.no_grad(), self._hooked(record) as decoder:
            try:
                decoder(**inputs)
            except StopForward:
                return captured
        raise ValueError(
            f"model {self._model.name!r}: the forward ended without reaching "
            f"{sorted(set(self._hook_names) - set(captured))}."
        )

    @contextmanager
    def _hooked(self, record: Callable[[str, Tensor], None]) -> Iterator[Any]:
        if self._twin is not None:
            hooks = [(name, place, functools.partial(record, name)) for place, name in self._places]
            with layer_hooks(decoder_layers(self._twin), hooks):
                yield self._twin.base_model
            return
        self._refuse_hooks()
        hooks = [(name, lambda x, hook, name=name: record(name, x)) for name in self._hook_names]
        inside = self._bridge.original_model
        with evaluation_mode(inside), self._bridge.hooks(fwd_hooks=hooks):
            yield inside.base_model

    def _refuse_hooks(self) -> None:
        edited = [name for name, point in self._bridge.hook_dict.items() if point.fwd_hooks]
        if edited:
            raise ValueError(
                f"model {self._model.name!r} is to be read unedited, but its bridge has hooks at {edited}; "
                "give load_sources the Hugging Face model (which may be edited meanwhile), or another bridge."
            )


def _twin(hf_model: nn.Module) -> Any:
    """The same modules with the same parameters and buffers, without hooks, in evaluation mode."""
    shared: dict[int, Any] = {id(t): t for t in (*hf_model.parameters(), *hf_model.buffers())}
    shared |= {id(getattr(m, table)): OrderedDict() for m in hf_model.modules() for table in _HOOK_TABLES}
    return copy.deepcopy(hf_model, memo=shared).eval()
