"""Adding a fixed vector to the residual stream of a running model, everywhere or after a marker."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crosscoders._typing import typed
from crosscoders.models.base import LanguageModel
from crosscoders.models.load import load_model
from crosscoders.models.trace import TokenTrace


class AddVector:
    """Adds one vector to the residual stream at a hook while `on` is active.

    This is what `SteeringHook` does with a latent's direction; use it directly for controls, such as a random
    direction of the same norm or an unembedding direction. Several of them add up, in any order.

    Args:
        vector: What is added at every chosen position, in the raw space of the model.
        hook_name: Residual-stream hook at which it is added, or "half".
        after: Add only at positions strictly after this marker's first occurrence in the row: text (of a
            model that brings a tokenizer), one token id, or several ids in a row. None is everywhere.
        from_position: Add only from this position of the row on, counted without left padding.
        at_tokens: Add only where the token read is one of these ids. None is any token.

    Raises:
        ValueError: A vector that is not finite, a negative position, or an empty `at_tokens`.

    Example:
        with AddVector(direction, hook_name="half").on(model):
            answers = generate(model, prompts, max_new_tokens=50, stop_ids=[1])
    """

    @typed
    def __init__(
        self,
        vector: Float[Tensor, " d_model"],
        *,
        hook_name: str,
        after: str | int | Sequence[int] | None = None,
        from_position: int = 0,
        at_tokens: Sequence[int] | None = None,
    ) -> None:
        if at_tokens is not None and len(at_tokens) == 0:
            raise ValueError(f"AddVector at {hook_name!r}: at_tokens is empty; None adds at every token.")
        if not bool(vector.isfinite().all()):
            raise ValueError(f"AddVector at {hook_name!r}: the vector holds NaN or infinite entries.")
        if from_position < 0:
            raise ValueError(f"AddVector: from_position must be at least 0, got {from_position}.")
        self.vector = vector.detach().clone()
        self.hook_name = hook_name
        self.after = after
        self.from_position = from_position
        self.at_tokens = None if at_tokens is None else tuple(at_tokens)

    @contextmanager
    def on(self, model: Any) -> Iterator[LanguageModel]:
        """Act on every forward of a model while the block runs, `generate` with a KV cache included.

        With `after` or `from_position`, enter the block before a generation starts, not in its middle.

        Args:
            model: LanguageModel, plain Hugging Face causal language model, or TransformerBridge.

        Yields:
            The model as a LanguageModel.

        Raises:
            ValueError: The vector does not fit the model, or the marker cannot be turned into token ids.
        """
        target = model if isinstance(model, LanguageModel) else load_model(model, name=type(model).__name__)
        if self.vector.shape[0] != target.d_model:
            raise ValueError(
                f"AddVector at {self.hook_name!r}: the vector has width {self.vector.shape[0]}, but the "
                f"residual stream of {target.name!r} has {target.d_model}; is this the "
                "model of the right source?"
            )
        marker = None if self.after is None else _marker_ids(self.after, target)
        with ExitStack() as stack:
            trace = None
            if marker is not None or self.from_position > 0 or self.at_tokens is not None:
                trace = stack.enter_context(target.trace_tokens())
            stack.enter_context(target.edit(self.hook_name, self._adding(trace, marker)))
            yield target

    def _adding(self, trace: TokenTrace | None, marker: tuple[int, ...] | None) -> Callable[[Tensor], Tensor]:
        def add(activation: Tensor) -> Tensor:
            vector = self.vector.to(device=activation.device, dtype=activation.dtype)
            if trace is None:
                return activation + vector
            is_chosen = trace.positions() >= self.from_position
            if marker is not None:
                is_chosen = is_chosen & trace.is_after(marker)
            if self.at_tokens is not None:
                is_chosen = is_chosen & trace.is_token(self.at_tokens)
            return torch.where(is_chosen[:, :, None], activation + vector, activation)

        return add


@typed
def random_vector_like(
    vector: Float[Tensor, " d_model"], *, generator: torch.Generator
) -> Float[Tensor, " d_model"]:
    """A vector of the same norm in a uniformly random direction: the control for steering by `vector`.

    Args:
        vector: The vector whose norm and width are taken.
        generator: Source of randomness, on the CPU.

    Returns:
        The control, in float32 on the vector's device.
    """
    direction = torch.randn(vector.shape, generator=generator)
    return (direction / direction.norm()).to(vector.device) * vector.float().norm()


def _marker_ids(after: str | int | Sequence[int], model: LanguageModel) -> tuple[int, ...]:
    if isinstance(after, str):
        if model.tokenizer is None:
            raise ValueError(
                f"after={after!r} needs a tokenizer, but {model.name!r} has none; pass token ids, or a "
                "LanguageModel made with load_model(model, name=..., tokenizer=...)."
            )
        ids = tuple(model.tokenizer(after, add_special_tokens=False)["input_ids"])
        if model.tokenizer.unk_token_id is not None and model.tokenizer.unk_token_id in ids:
            raise ValueError(
                f"after={after!r} is not in the vocabulary of {model.name!r}: its ids are {ids}."
            )
    else:
        ids = (after,) if isinstance(after, int) else tuple(after)
    if not ids or min(ids) < 0 or max(ids) >= model.n_vocab:
        raise ValueError(
            f"after={after!r} gives the ids {ids}; expected at least one id in [0, {model.n_vocab})."
        )
    return ids
