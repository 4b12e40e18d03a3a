"""Which tokens each row of a running forward has read, also while generating with a KV cache."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_ROW_METHODS = ("reorder_cache", "batch_select_indices", "batch_repeat_interleave")


class TokenTrace:
    """The tokens that lie behind the activations of the forward now running.

    A layer sees only the new positions of a cached step, so an edit that depends on earlier tokens needs
    their history. The trace reads `input_ids` where the model takes them in, appends them when the KV cache
    is not empty, and follows the cache when rows are dropped or reordered (beam search). Positions count
    real tokens only, so left padding shifts nothing.
    """

    def __init__(self) -> None:
        self._tokens = torch.zeros(0, 0, dtype=torch.int64)
        self._is_real = torch.zeros(0, 0, dtype=torch.bool)
        self._position_ids = torch.zeros(0, 0, dtype=torch.int64)
        self._n_new = 0
        self._cache: Any = None
        self._followed: list[tuple[Any, dict[str, Any]]] = []
        self._listeners: list[Callable[[Tensor], Any]] = []

    @property
    def tokens(self) -> Int[Tensor, "batch pos"]:
        """Every token that the rows have read so far, padding included."""
        return self._tokens

    @property
    def is_real(self) -> Bool[Tensor, "batch pos"]:
        """Which of `tokens` are no padding."""
        return self._is_real

    @property
    def position_ids(self) -> Int[Tensor, "batch pos"]:
        """Position at which the model read each of `tokens`."""
        return self._position_ids

    @property
    def n_new(self) -> int:
        """How many of `tokens`, the last ones, are read by the forward now running."""
        return self._n_new

    def positions(self) -> Int[Tensor, "batch pos"]:
        """Position of each new token in its own row, counted without padding (-1 on left padding)."""
        return (self._is_real.long().cumsum(dim=1) - 1)[:, -self._n_new :]

    def is_token(self, token_ids: tuple[int, ...]) -> Bool[Tensor, "batch pos"]:
        """Whether each new token is one of these ids (never on padding).

        Args:
            token_ids: Ids to look for.

        Returns:
            True at those tokens.
        """
        wanted = torch.tensor(token_ids, device=self._tokens.device)
        return (torch.isin(self._tokens, wanted) & self._is_real)[:, -self._n_new :]

    def is_after(self, marker: tuple[int, ...]) -> Bool[Tensor, "batch pos"]:
        """Whether each new token stands strictly after a complete occurrence of the marker in its row.

        Args:
            marker: One or more token ids in a row; the position of the last one is not itself "after".

        Returns:
            True from the token after the marker on.
        """
        n_seen = self._tokens.shape[1]
        ends = torch.zeros_like(self._is_real)
        if n_seen >= len(marker):
            pattern = torch.tensor(marker, device=self._tokens.device)
            windows = self._tokens.unfold(1, len(marker), 1)
            whole = self._is_real.unfold(1, len(marker), 1).all(dim=2)
            ends[:, len(marker) - 1 :] = (windows == pattern).all(dim=2) & whole
        seen_before = ends.long().cumsum(dim=1) - ends.long()
        return (seen_before > 0)[:, -self._n_new :]

    def read(self, input_ids: Tensor, *, attention_mask: Any, position_ids: Any, cache: Any) -> None:
        """Take in the new tokens of a forward that is about to run.

        Args:
            input_ids: [batch pos] new tokens.
            attention_mask: [batch total] with 0 on padding; what `generate` makes of it for a static cache
                (per kind of layer, [batch 1 pos total], one query a row); or None for "no padding".
            position_ids: [batch pos] or [1 pos] positions of the new tokens, or None: counted from the cache.
            cache: The KV cache, or None.

        Raises:
            RuntimeError: The cache holds tokens that this trace did not see.
        """
        n_cached = 0 if cache is None else int(cache.get_seq_length())
        self._check_seen(input_ids, n_cached=n_cached, cache=cache)
        self._n_new = input_ids.shape[1]
        new = (
            input_ids,
            _is_real(attention_mask, input_ids, n_cached=n_cached),
            _positions(position_ids, input_ids, n_cached=n_cached),
        )
        if n_cached:
            old = (self._tokens, self._is_real, self._position_ids)
            new = tuple(torch.cat([a[:, :n_cached], b], dim=1) for a, b in zip(old, new, strict=True))
        self._tokens, self._is_real, self._position_ids = new
        self._cache = None
        if cache is not None:
            self.follow(cache)

    def follow(self, cache: Any) -> None:
        """Take a KV cache as the one that belongs to the tokens read.

        Args:
            cache: The cache, passed to the forward or made by it.
        """
        self._cache = cache
        if all(cache is not followed for followed, _ in self._followed):
            self.release()
            self._wrap(cache)

    @contextmanager
    def rows_selected(self, listener: Callable[[Tensor], Any]) -> Iterator[None]:
        """Tell a listener which rows, by their old index, the KV cache has kept or reordered.

        Args:
            listener: Called with the indices [batch] each time, after this trace has followed.

        Returns:
            A context manager; the listener is told while it lasts.
        """
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def release(self) -> None:
        """Give the followed caches their own methods back."""
        for cache, own in reversed(self._followed):
            for method, previous in own.items():
                if previous is None:
                    vars(cache).pop(method, None)
                else:
                    setattr(cache, method, previous)
        self._followed.clear()

    def _check_seen(self, input_ids: Tensor, *, n_cached: int, cache: Any) -> None:
        n_rows, n_seen = self._tokens.shape
        is_own = cache is self._cache
        if n_cached and not (is_own and n_rows == input_ids.shape[0] and n_seen >= n_cached):
            seen = f"{n_seen} for {n_rows}, {'in it' if is_own else 'in none or in another'}"
            raise RuntimeError(
                f"the KV cache holds {n_cached} tokens for {input_ids.shape[0]} rows, but the hook saw "
                f"{seen}; enter the hook before the first forward of a generation, and finish one "
                "generation before the next."
            )

    def _wrap(self, cache: Any) -> None:
        own = {method: vars(cache).get(method) for method in _ROW_METHODS if hasattr(cache, method)}
        for method in own:
            setattr(cache, method, self._selecting_rows(getattr(cache, method)))
        self._followed.append((cache, own))

    def _selecting_rows(self, method: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def select(chosen: Any) -> Any:
            result = method(chosen)
            rows = chosen
            if isinstance(chosen, int):  # batch_repeat_interleave
                rows = torch.arange(len(self._tokens), device=self._tokens.device).repeat_interleave(chosen)
            at = rows.to(self._tokens.device)
            self._tokens, self._is_real = self._tokens[at], self._is_real[at]
            self._position_ids = self._position_ids[at]
            for listener in self._listeners:
                listener(rows)
            return result

        return select


def _is_real(attention_mask: Any, input_ids: Tensor, *, n_cached: int) -> Tensor:
    """Which new tokens are no padding: every real token may attend to itself, and no padding may."""
    if isinstance(attention_mask, dict):
        attention_mask = next(iter(attention_mask.values()))
    n_new = input_ids.shape[1]
    if not isinstance(attention_mask, Tensor):
        return torch.ones_like(input_ids, dtype=torch.bool)
    if attention_mask.ndim == 2:
        return attention_mask[:, -n_new:].bool().to(input_ids.device)
    to_itself = attention_mask[:, 0].diagonal(offset=n_cached, dim1=1, dim2=2)[:, :n_new]
    may = to_itself if to_itself.dtype == torch.bool else to_itself == 0
    return may.to(input_ids.device).expand(input_ids.shape)


def _positions(position_ids: Any, input_ids: Tensor, *, n_cached: int) -> Tensor:
    if not isinstance(position_ids, Tensor) or position_ids.ndim != 2:
        position_ids = torch.arange(n_cached, n_cached + input_ids.shape[1])[None]
    return position_ids.to(input_ids.device).expand(input_ids.shape)


@dataclass
class _Shared:
    """The trace of a decoder, its hooks, and how many blocks use them."""

    trace: TokenTrace
    handles: tuple[RemovableHandle, ...]
    n_users: int = 0


_shared: weakref.WeakKeyDictionary[nn.Module, _Shared] = weakref.WeakKeyDictionary()


@contextmanager
def trace_tokens(decoder: nn.Module) -> Iterator[TokenTrace]:
    """Follow the tokens that a decoder reads while the block runs; blocks that overlap share one trace.

    Args:
        decoder: The module that takes `input_ids`, below the unembedding.

    Yields:
        The trace, up to date inside every layer hook.
    """
    shared = _shared.get(decoder)
    if shared is None:
        shared = _shared[decoder] = _attached(decoder)
    shared.n_users += 1
    try:
        yield shared.trace
    finally:
        shared.n_users -= 1
        if shared.n_users == 0:
            del _shared[decoder]
            for handle in shared.handles:
                handle.remove()
            shared.trace.release()


def _attached(decoder: nn.Module) -> _Shared:
    trace = TokenTrace()

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        input_ids = args[0] if args else kwargs.get("input_ids")
        if input_ids is None:
            raise ValueError(
                "a hook that follows tokens (positions, codes in lockstep) needs input_ids, but the model "
                "was called with inputs_embeds."
            )
        trace.read(
            input_ids,
            attention_mask=kwargs.get("attention_mask"),
            position_ids=kwargs.get("position_ids"),
            cache=kwargs.get("past_key_values"),
        )

    def after(module: nn.Module, args: tuple, output: Any) -> None:
        parts = output if isinstance(output, tuple) else (getattr(output, "past_key_values", None),)
        made = [part for part in parts if hasattr(part, "get_seq_length")]
        if made:
            trace.follow(made[0])

    handles = (
        decoder.register_forward_pre_hook(before, with_kwargs=True),
        decoder.register_forward_hook(after),
    )
    return _Shared(trace=trace, handles=handles)
