"""Batched generation with a KV cache; edits that are active on the model act on every step."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.models.base import LanguageModel
from crosscoders.models.context import check_context
from crosscoders.models.hooks import evaluation_mode

_DROP_FINISHED_ABOVE = (
    0.2  # finished share of the batch from which copying the cache pays; CPU, 6 x 128, batch 200
)


@typed
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
) -> list[list[int]]:
    """Continue each prompt, greedily or by sampling.

    Prompts are padded on the left and masked, so a greedy answer does not depend on which other prompts are
    in its batch. Rows that have stopped leave the batch. Sampling is a function of the arguments and the
    generator's state.

    Args:
        model: The model, possibly inside `edit` or `SteeringHook.on`.
        prompts: Token ids of each prompt.
        max_new_tokens: Longest answer.
        stop_ids: Ids that end an answer.
        temperature: 0 takes the most likely token; above it, tokens follow softmax(logits / temperature).
        generator: Source of randomness, on the model's device; required if `temperature` > 0.
        batch_size: Prompts that run together.

    Returns:
        The new tokens of each prompt in the order given; an answer that stopped ends in its stop id.

    Raises:
        ValueError: An empty prompt, one too long for a model without rotary positions (others warn beyond
            their context), sampling without generator, or a model that was read only up to a hook.
    """
    _check(model, prompts, max_new_tokens=max_new_tokens, temperature=temperature, generator=generator)
    if batch_size < 1:
        raise ValueError(f"generate: batch_size must be at least 1, got {batch_size}.")
    answers: list[list[int]] = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    with torch.no_grad(), evaluation_mode(model.causal_lm):
        for start in range(0, len(by_length), batch_size):
            rows = by_length[start : start + batch_size]
            batch = _Batch(model, [prompts[i] for i in rows], max_new_tokens=max_new_tokens)
            for _ in range(max_new_tokens):
                batch.step(temperature=temperature, generator=generator)
                batch.retire(stop_ids)
                if batch.is_done:
                    break
            for i, answer in zip(rows, batch.answers(), strict=True):
                answers[i] = answer
    return answers


def _check(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator | None,
) -> None:
    model.require_whole("generation")
    if max_new_tokens < 1:
        raise ValueError(f"generate: max_new_tokens must be at least 1, got {max_new_tokens}.")
    if temperature < 0 or (temperature > 0 and generator is None):
        raise ValueError(
            f"generate: temperature {temperature} needs "
            f"{'to be at least 0' if temperature < 0 else 'generator=torch.Generator(...)'}."
        )
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"generate: prompt {i} is empty.")
        if min(prompt) < 0 or max(prompt) >= model.n_vocab:
            raise ValueError(f"generate: prompt {i} has ids outside [0, {model.n_vocab}).")
    check_context(model, max(map(len, prompts), default=0) + max_new_tokens)


class _Batch:
    """Rows in flight: what each will read next, and the KV cache behind them."""

    def __init__(
        self, model: LanguageModel, prompts: Sequence[Sequence[int]], *, max_new_tokens: int
    ) -> None:
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        longest = int(lengths.max())
        tokens = torch.zeros(len(prompts), longest, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask = torch.ones(len(prompts), longest + max_new_tokens, dtype=torch.int64)
        mask[:, :longest] = torch.arange(longest) >= (longest - lengths)[:, None]
        self._has_padding = bool((mask == 0).any())
        self._model = model
        self._next = tokens.to(model.device)
        self._mask = mask.to(model.device)
        self._positions = (self._mask[:, :longest].cumsum(dim=1) - 1).clamp_min(
            0
        )  # padding is masked out anyway
        self._n_read = 0
        self._cache = new_cache(model)
        self._row_of = torch.arange(len(prompts))
        self._is_finished = torch.zeros(len(prompts), dtype=torch.bool)
        self._answers: list[list[int]] = [[] for _ in prompts]

    @property
    def is_done(self) -> bool:
        """Whether every row has stopped."""
        return bool(self._is_finished.all())

    def answers(self) -> list[list[int]]:
        """New tokens of each row."""
        return self._answers

    def step(self, *, temperature: float, generator: torch.Generator | None) -> None:
        """Run the model on the pending tokens and choose one more per row."""
        self._n_read += self._next.shape[1]
        output = self._model.causal_lm(
            input_ids=self._next,
            attention_mask=self._mask[:, : self._n_read] if self._has_padding else None,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        chosen = _choose(output.logits[:, -1].float(), temperature=temperature, generator=generator)
        self._next = chosen[:, None]
        self._positions = self._positions[:, -1:] + 1

    def retire(self, stop_ids: Collection[int]) -> None:
        """Record the chosen tokens; drop stopped rows once enough of the batch has stopped."""
        for slot, token in enumerate(self._next[:, 0].tolist()):
            if not self._is_finished[slot]:
                self._answers[self._row_of[slot]].append(token)
                self._is_finished[slot] = token in stop_ids
        if not self.is_done and self._is_finished.float().mean() > _DROP_FINISHED_ABOVE:
            self._keep(torch.nonzero(~self._is_finished)[:, 0])

    def _keep(self, slots: Tensor) -> None:
        self._row_of, self._is_finished = self._row_of[slots], self._is_finished[slots]
        slots = slots.to(self._next.device)
        self._cache.batch_select_indices(slots)
        self._next, self._mask, self._positions = self._next[slots], self._mask[slots], self._positions[slots]


def _choose(logits: Tensor, *, temperature: float, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logits.argmax(dim=-1)
    return torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)[:, 0]


def new_cache(model: LanguageModel) -> Any:
    """An empty KV cache of the kind that a model needs.

    Args:
        model: The model that will read and fill it.
    """
    from transformers import DynamicCache

    return DynamicCache(config=model.causal_lm.config)
