"""Which tokens each row of a running forward has read, also while generating with a KV cache."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

_ROW_METHODS = ("reorder_cache", "batch_select_indices")


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
        self._n_new = 0
        self._followed: list[tuple[Any, dict[str, Any]]] = []

    def positions(self) -> Int[Tensor, "batch pos"]:
        """Position of each new token in its own row, counted without padding (-1 on left padding)."""
        return (self._is_real.long().cumsum(dim=1) - 1)[:, -self._n_new :]

    def is_token(self, token_ids: tuple[int, ...]) -> Bool[Tensor, "batch pos"]:
        """Whether each new token is one of these ids (never on padding).

        Args:
            token_ids: Ids to look for.
        """
        wanted = torch.tensor(token_ids, device=self._tokens.device)
        return (torch.isin(self._tokens, wanted) & self._is_real)[:, -self._n_new :]

    def is_after(self, marker: tuple[int, ...]) -> Bool[Tensor, "batch pos"]:
        """Whether each new token stands strictly after a complete occurrence of the marker in its row.

        Args:
            marker: One or more token ids in a row; the position of the last one is not itself "after".
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

    def read(self, input_ids: Tensor, *, attention_mask: Any, cache: Any) -> None:
        """Take in the new tokens of a forward that is about to run.

        Args:
            input_ids: [batch pos] new tokens.
            attention_mask: [batch total] with 0 on padding, or anything else for "no padding".
            cache: The KV cache, or None.

        Raises:
            RuntimeError: The cache holds tokens that this trace did not see.
        """
        n_cached = 0 if cache is None else int(cache.get_seq_length())
        self._n_new = input_ids.shape[1]
        is_real = torch.ones_like(input_ids, dtype=torch.bool)
        if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
            is_real = attention_mask[:, -self._n_new :].bool()
        if n_cached and (self._tokens.shape[0] != input_ids.shape[0] or self._tokens.shape[1] < n_cached):
            raise RuntimeError(
                f"the KV cache holds {n_cached} tokens for {input_ids.shape[0]} rows, but the hook saw "
                f"{tuple(self._tokens.shape)}; enter the hook before the first forward of a generation."
            )
        if n_cached:
            self._tokens = torch.cat([self._tokens[:, :n_cached], input_ids], dim=1)
            self._is_real = torch.cat([self._is_real[:, :n_cached], is_real], dim=1)
        else:
            self._tokens, self._is_real = input_ids, is_real
        if cache is not None and all(cache is not followed for followed, _ in self._followed):
            self._follow(cache)

    def release(self) -> None:
        """Give the followed caches their own methods back."""
        for cache, own in reversed(self._followed):
            for method, previous in own.items():
                if previous is None:
                    vars(cache).pop(method, None)
                else:
                    setattr(cache, method, previous)
        self._followed.clear()

    def _follow(self, cache: Any) -> None:
        self.release()
        own = {method: vars(cache).get(method) for method in _ROW_METHODS if hasattr(cache, method)}
        for method in own:
            setattr(cache, method, self._selecting_rows(getattr(cache, method)))
        self._followed.append((cache, own))

    def _selecting_rows(self, method: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        def select(rows: Tensor) -> Any:
            result = method(rows)
            self._tokens, self._is_real = self._tokens[rows], self._is_real[rows]
            return result

        return select


@contextmanager
def trace_tokens(decoder: nn.Module) -> Iterator[TokenTrace]:
    """Follow the tokens that a decoder reads while the block runs.

    Args:
        decoder: The module that takes `input_ids`, below the unembedding.

    Yields:
        The trace, up to date inside every layer hook.
    """
    trace = TokenTrace()

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        input_ids = args[0] if args else kwargs.get("input_ids")
        if input_ids is None:
            raise ValueError(
                "a hook limited to positions needs input_ids, but the model was called with inputs_embeds."
            )
        trace.read(
            input_ids, attention_mask=kwargs.get("attention_mask"), cache=kwargs.get("past_key_values")
        )

    handle = decoder.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield trace
    finally:
        handle.remove()
        trace.release()
